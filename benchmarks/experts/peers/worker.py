"""The process of one engine.

    python -m experts.peers.worker ENGINE VARIANT LAYER FOLDER NUM_THREADS MAX_TOKENS ENVIRONMENT

It builds the variant from the layer's file and says that it is ready. Then every line on its standard input
names a file in FOLDER that holds a call; it times the call, writes the result to the file `out` and answers
with the seconds. Answers are lines of JSON; whatever else the engine prints goes to standard error.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from experts.contestant import settle
from experts.layer import CALL_NAMES, Layer
from experts.peers.catalog import ENGINES
from experts.peers.engine import AbsentError, Setting

PR_SET_PDEATHSIG = 1


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # may be stopped when the benchmark ends
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers)

    engine, variant, layer, folder, num_threads, max_tokens, environment = sys.argv[1:]
    torch.set_num_threads(int(num_threads))
    setting = Setting(environment=Path(environment), num_threads=int(num_threads), max_tokens=int(max_tokens))
    try:
        run = ENGINES[engine][variant].build(Layer.load(Path(layer)), setting)
    except AbsentError as error:
        answer(absent=str(error))
        return
    answer(ready=True)
    for line in sys.stdin:
        tensors = load_file(Path(folder) / line.strip())  # mapped: reading it would count
        x, topk_weights, topk_ids = (tensors[name].clone() for name in CALL_NAMES)
        settle()
        seconds, out = run((x, topk_weights, topk_ids))
        save_file({"out": out}, Path(folder) / "out")
        answer(seconds=seconds)


if __name__ == "__main__":
    main()
