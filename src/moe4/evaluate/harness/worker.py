"""Evaluate one model in a process of its own.

    python -m moe4.evaluate.harness.worker [--name-options] REQUEST.json ANSWER.json

With --name-options, its messages name arguments as the command line does. Its end frees the model's memory,
and nothing that vLLM prints mixes with what `moe4 eval` prints.
"""

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from moe4.arguments import named_as_options
from moe4.errors import Moe4Error
from moe4.evaluate.harness.request import EvaluationRequest
from moe4.strict_json import JsonObject

# For vLLM on CPUs, where the user has not chosen: GiB for the cache of keys and values.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(request_path: Path, answer_path: Path) -> None:
    """Read the request, evaluate, write {"tasks": ...} or {"error": ...}."""
    from moe4.evaluate.harness.backend import evaluate

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    fields = json.loads(request_path.read_text(encoding="utf-8"))
    request = EvaluationRequest(**fields | {"tasks": tuple(fields["tasks"])})
    try:
        answer: JsonObject = {"tasks": {task: asdict(found) for task, found in evaluate(request).items()}}
    except Moe4Error as error:
        answer = {"error": str(error)}
    answer_path.write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    *switches, request, answer = sys.argv[1:]
    with named_as_options() if switches else nullcontext():
        main(Path(request), Path(answer))
