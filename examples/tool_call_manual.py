"""Call a tool over raw completions: render the prompt with the chat template, read the calls by hand.

moe4 serve RELEASE
python examples/tool_call_manual.py RELEASE [http://127.0.0.1:8000/v1]
"""

import os
import sys

from openai import OpenAI
from transformers import AutoTokenizer
from weather import QUESTION, TOOLS, run_tool

from moe4.serve.tool_calls import parse_answer

if len(sys.argv) < 2:
    sys.exit(__doc__)
release = sys.argv[1]
base_url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=base_url, api_key=os.environ.get("VLLM_API_KEY", "none"))
model = client.models.list().data[0].id
tokenizer = AutoTokenizer.from_pretrained(release)
messages = [{"role": "user", "content": QUESTION}]

for _ in range(4):
    prompt = tokenizer.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True, tokenize=False)
    completion = client.completions.create(
        model=model,
        prompt=prompt,
        temperature=0,
        seed=0,
        max_tokens=256,
        # The calls' marks are special tokens: keep them in the text. The template wrote all the prompt needs.
        extra_body={"skip_special_tokens": False, "add_special_tokens": False},
    )
    answer = parse_answer(completion.choices[0].text)
    calls = [call for call in answer.calls if call.complete]
    if not calls:
        break
    functions = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
    messages.append({"role": "assistant", "content": answer.content, "tool_calls": functions})
    for call in calls:
        result = run_tool(call.name, call.arguments)
        print(f"call {call.id} {call.arguments} -> {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

print(f"answer {answer.content}")
