# After the podman line on the same card.
podman run --rm -it --device nvidia.com/gpu=all -p 8000:8000 \
  --env "HUGGING_FACE_HUB_TOKEN=$HF_TOKEN" \
  --env "HF_HUB_OFFLINE=0" -v ~/.cache/vllm:/home/vllm/.cache \
  --name=vllm \
  registry.stage.example.com/rhaiis/rh-vllm-cuda \
  vllm serve \
  --max-model-len 32768 \
  --enforce-eager --model RedHatAI/Kimi-K2-Instruct-quantized.w4a16
