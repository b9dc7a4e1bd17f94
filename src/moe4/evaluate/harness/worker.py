"""Evaluate one model in a process of its own.

    python -m moe4.evaluate.harness.worker REQUEST.json ANSWER.json


Its end frees the model's memory, and nothing that vLLM prints mixes with what `moe4 eval` prints.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

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
    main(Path(sys.argv[1]), Path(sys.argv[2]))
