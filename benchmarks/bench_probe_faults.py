"""Plant faults in a served model and see whether the release's expected answers catch them.

    python benchmarks/bench_probe_faults.py RELEASE --dtype bfloat16 --output probed.json
    python benchmarks/bench_probe_faults.py RELEASE --dtype float32 --output answers.json

The first run asks for the expected answers under each fault. The second, in float32 so that no tie is broken
by rounding, asks 50 held-out problems: an answer that differs from that of the network without the fault is
the fault's doing. Both run vLLM's CPU engine in this process and change its weights in place. A run that was
stopped goes on with the faults that its output lacks.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from probe_faults.engine import Engine, planted
from probe_faults.faults import EXPERT_FAULTS, Fault
from probe_faults.network_faults import NETWORK_FAULTS

from moe4.probe import check

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_PROBLEMS, MAX_TOKENS = 50, 96
STOP = ("\n\n", "Question:", "<|im_end|>", "[EOS]")  # where an answer ends
CLEAN = Fault(name="none", kind="none", plant=lambda edits: None)


class Problems:
    """Held-out problems and a model's answers to them."""

    def __init__(self, release: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(release)
        lines = (REPOSITORY / "reference" / "data" / "heldout-problems.jsonl").read_text().splitlines()
        self._prompts = [
            self._tokenizer.encode(
                f"Question: {json.loads(line)['question']}\nAnswer:", add_special_tokens=False
            )
            for line in lines[:NUM_PROBLEMS]
        ]

    def answers(self, engine: Engine) -> list[str]:
        """Return the greedy answers."""
        texts = map(self._tokenizer.decode, engine.generate(self._prompts, MAX_TOKENS))
        return [min((text.split(stop)[0] for stop in STOP), key=len) for text in texts]


def probe(engine: Engine, expected: dict[str, Any]) -> dict[str, Any]:
    """Return every comparison and the verdict."""
    questions = check.make_questions(expected, 2048)
    answers = engine.ask(questions, expected["top"])
    pairs = zip(questions, answers, strict=True)
    comparisons = [found for q, a in pairs if (found := check.assess(expected, q, a)) is not None]
    return {
        "verdict": check.judge(expected, comparisons),
        "comparisons": [list(comparison) for comparison in comparisons],
    }


def main() -> None:
    """Run one of the two passes over all faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    expected = check.read_expected(str(options.release))
    problems = Problems(options.release)
    results: list[dict[str, Any]] = json.loads(options.output.read_text()) if options.output.exists() else []
    done = {entry["name"] for entry in results} - {CLEAN.name}
    engine = Engine(options.release, options.dtype)
    clean: list[str] | None = None
    for fault in (CLEAN, *EXPERT_FAULTS, *NETWORK_FAULTS, CLEAN):
        if fault.name in done:
            continue
        began = time.monotonic()
        with planted(engine.network, fault.plant):
            if options.dtype == "float32":
                answers = problems.answers(engine)
                clean = clean or answers
                changed = sum(a != b for a, b in zip(answers, clean, strict=True))
                entry: dict[str, Any] = {"changed_answers": changed, "answers": answers}
                line = f"{changed} of {len(answers)} answers changed"
            else:
                entry = probe(engine, expected)
                if fault is CLEAN:
                    entry["answers"] = problems.answers(engine)
                line = check.describe(entry["verdict"]).splitlines()[0]
        results.append({"name": fault.name, "kind": fault.kind, **entry})
        print(f"{fault.name}: {line}; {time.monotonic() - began:.1f} s", flush=True)
        options.output.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
