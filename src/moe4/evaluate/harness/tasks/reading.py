"""Read the tasks' questions from the folders that the harness' metadata names."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from moe4.arguments import argument
from moe4.errors import EvaluationError
from moe4.files.regular import read_text

GSM8K_ON_THE_HUB = ("openai/gsm8k", "main")


def read_k2_tiny(data: str, **_: Any) -> DatasetDict:
    """Return k2-tiny's problems: `test`, held out, and `fewshot`, the fixed examples."""
    folder = Path(data)
    return DatasetDict(
        test=read_questions(folder / "heldout-problems.jsonl"),
        fewshot=read_questions(folder / "fewshot-problems.jsonl"),
    )


def read_gsm8k(gsm8k: str | None = None, **_: Any) -> DatasetDict:
    """Return GSM8K's `train` and `test` from a folder with train.jsonl and test.jsonl, or from the hub."""
    if gsm8k is not None:
        folder = Path(gsm8k)
        return DatasetDict(
            train=read_questions(folder / "train.jsonl"), test=read_questions(folder / "test.jsonl")
        )
    path, name = GSM8K_ON_THE_HUB
    try:
        return load_dataset(path, name)
    except Exception as error:  # the hub's client raises whatever its transports raise
        raise EvaluationError(
            f"GSM8K cannot be downloaded from the hub ({type(error).__name__}); "
            f"give a folder with train.jsonl and test.jsonl by {argument('gsm8k_dir')}"
        ) from error


def read_questions(path: Path) -> Dataset:
    """Return the rows of a JSONL file, each with `question` and `answer`.

    Raises CheckpointError if it cannot be read, EvaluationError for a line that is something else.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append({"question": str(row["question"]), "answer": str(row["answer"])})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise EvaluationError(
                f'{path}, line {number}: expected {{"question": ..., "answer": ...}}, found {line[:60]!r}'
            ) from error
    if not rows:
        raise EvaluationError(f"{path} is empty")
    return Dataset.from_list(rows)
