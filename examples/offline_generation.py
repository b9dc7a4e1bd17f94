"""Generate with vLLM's engine in this process, without a server.

python examples/offline_generation.py RELEASE [PROMPT ...]
"""

import sys

from vllm import LLM, SamplingParams


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    release = sys.argv[1]
    prompts = sys.argv[2:] or ["Tom has 3 apples and buys 4 more.", "The answer is"]
    llm = LLM(model=release, dtype="bfloat16", max_model_len=2048, enforce_eager=True)
    sampling = SamplingParams(temperature=0.7, top_p=0.8, max_tokens=256)
    for output in llm.generate(prompts, sampling):
        print(f"{output.prompt!r} -> {output.outputs[0].text!r}")


# vLLM starts processes that import this file again: what starts them must stand behind this line.
if __name__ == "__main__":
    main()
