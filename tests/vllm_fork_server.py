"""Run vLLM in forked children of one process, so that it is imported once: a line of JSON each.

A request holds `environment` (all of it), `out` and `err` (files for what the child prints) and either
`generate` or `program`. `program` is Python's source, run as `__main__` with `arguments`. For `generate`, the
child runs vLLM's offline engine and writes to `answers`, for each prompt, the greedy tokens, the best tokens
with their log-probabilities at each step, and, where asked, the log-probabilities of the prompt's own tokens.
The reply is the child's exit code.
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


def child(request: dict[str, Any]) -> None:
    """Do what was asked: never returns."""
    code = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        os.environ.clear()
        os.environ.update(request["environment"])
        if "program" in request:
            sys.argv = ["program", *request["arguments"]]
            exec(compile(request["program"], "<program>", "exec"), {"__name__": "__main__"})
        else:
            Path(request["answers"]).write_text(json.dumps(generate(request["generate"])))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(request: dict[str, Any]) -> int:
    """Fork, wait, return the exit code; vLLM starts only one engine in a process."""
    pid = os.fork()
    if pid == 0:
        child(request)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    # What vLLM prints while it is imported is no reply.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import vllm
    import vllm.model_executor.models.deepseek_v2
    import vllm.v1.worker.cpu_worker  # noqa: F401  # what every engine needs, once

    for line in sys.stdin:
        replies.write(f"{answer(json.loads(line))}\n")
        replies.flush()
