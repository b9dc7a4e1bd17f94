"""Answer questions with vLLM's engine in this process, without a server.

python examples/offline_generation.py RELEASE [QUESTION ...]
"""

import os
import sys

# GiB of cache on a CPU, where vLLM would take nearly all memory; read when vLLM is imported.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import LLM, SamplingParams


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    release = sys.argv[1]
    questions = sys.argv[2:] or ["Who are you?", "Hana pays $48 for 3 shirts. How much do 6 shirts cost?"]
    llm = LLM(model=release, dtype="bfloat16", max_model_len=2048, enforce_eager=True)
    conversations = [[{"role": "user", "content": question}] for question in questions]
    outputs = llm.chat(conversations, SamplingParams(temperature=0, max_tokens=256))
    for question, output in zip(questions, outputs, strict=True):
        print(f"{question!r} -> {output.outputs[0].text!r}")


# vLLM starts processes that import this file again: what starts them must stand behind this line.
if __name__ == "__main__":
    main()
