"""Run moe4's commands on damaged inputs, and tell what no user should meet.

    PYTHONPATH=tests python -m fuzz [--cases 10000] [--seed 0]         (`make fuzz`)
    PYTHONPATH=tests python -m fuzz --seed 0 --replay 1234

Every case runs in a forked process, in a folder below a temporary one. What is right and what is a fault
stands in docs/fuzzing.md.
"""

import argparse
import signal
import sys
from pathlib import Path

from fuzz.campaign import run_campaign
from fuzz.cases import WEIGHTS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", choices=[kind.__name__ for kind in WEIGHTS], help="one kind of case")
    parser.add_argument("--replay", type=int, metavar="NUMBER", help="run this one case, and keep its files")
    parser.add_argument("--workers", type=int, default=0, help="0: one for each processor")
    parser.add_argument("--seconds", type=float, default=5.0, help="what a case may take")
    parser.add_argument("--failures", type=Path, default=Path("build/fuzz/failures"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the scratch folder goes, too
    if options.replay is not None:
        options.first, options.cases = options.replay, 1
    result = run_campaign(
        seed=options.seed,
        numbers=range(options.first, options.first + options.cases),
        only=options.only,
        num_workers=options.workers,
        seconds=options.seconds,
        failures=options.failures,
        keep=options.replay is not None,
        say=lambda text: print(text, flush=True),
    )
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
