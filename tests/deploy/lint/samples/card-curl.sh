# After the request on the same card: the first line is not continued.
curl https://<inference_service_name>-predictor-default.<domain>/v1/chat/completions
  -H "Content-Type: application/json" \
  -d '{
    "model": "kimi-k2-instruct-quantized.w4a16",
    "stream": true,
    "stream_options": {
      "include_usage": true
    },
    "max_tokens": 1,
    "messages": [
      {
        "role": "user",
        "content": "How can a bee fly when its wings are so small?"
      }
    ]
}'
