"""Run vLLM's offline engine in a process of its own: `python generate.py REQUESTS.json ANSWERS.json`.

A request names a model folder and prompts as token ids; its answers hold, for each prompt, the greedy
tokens, the best tokens with their log-probabilities at each step, and, where asked, the log-probabilities of
the prompt's own tokens. Requests are served one after the other, each by a copy of this process, which saves
half of vLLM's start.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

NUM_BEST = 8


def generate(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one answer per prompt, in order."""
    from vllm import LLM, SamplingParams

    options = {
        "dtype": "bfloat16",
        "max_model_len": 2048,
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        **request.get("engine", {}),
    }
    llm = LLM(model=request["model"], enable_prefix_caching=False, max_num_seqs=16, seed=0, **options)
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=request["max_tokens"],
        ignore_eos=True,
        detokenize=False,
        logprobs=NUM_BEST,
        prompt_logprobs=0 if request.get("prompt_logprobs") else None,
    )
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in request["prompts"]], sampling)
    answers = []
    for prompt, output in zip(request["prompts"], outputs, strict=True):
        completion = output.outputs[0]
        steps = [
            sorted(((token, entry.logprob) for token, entry in step.items()), key=lambda pair: -pair[1])
            for step in completion.logprobs
        ]
        answer: dict[str, Any] = {"tokens": list(completion.token_ids), "steps": steps}
        if output.prompt_logprobs is not None:
            entries = zip(prompt[1:], output.prompt_logprobs[1:], strict=True)
            answer["prompt_logprobs"] = [entry[token].logprob for token, entry in entries]
        answers.append(answer)
    return answers


def generate_in_child(request: dict[str, Any], answer_file: Path) -> list[dict[str, Any]]:
    """Serve one request in a copy of this process, since vLLM starts only one engine in a process."""
    child = os.fork()
    if child == 0:
        try:
            answer_file.write_text(json.dumps(generate(request)))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"no answers from {request['model']}")
    answers: list[dict[str, Any]] = json.loads(answer_file.read_text())
    return answers


if __name__ == "__main__":
    request_file, answer_file = map(Path, sys.argv[1:])
    import vllm
    import vllm.model_executor.models.deepseek_v2
    import vllm.v1.worker.cpu_worker  # noqa: F401  # what every engine needs, once

    answers = []
    for request in json.loads(request_file.read_text()):
        os.write(1, b"begin request\n")
        answers.append(generate_in_child(request, answer_file))
    answer_file.write_text(json.dumps(answers))
