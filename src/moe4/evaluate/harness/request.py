"""What to evaluate: model, tasks and where their data lie; checked before anything slow begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe4 import reference
from moe4.arguments import argument
from moe4.checkpoint.index import CheckpointIndex
from moe4.errors import CheckpointError, EvaluationError, MissingFileError
from moe4.hub.locate import locate

TASKS_FOLDER = Path(__file__).parent / "tasks"
PROBLEMS = "k2_tiny_problems"
GSM8K = "gsm8k"
GSM8K_FILES = ("train.jsonl", "test.jsonl")
# Task and number of examples before each question.
TASKS = {PROBLEMS: 5, f"{PROBLEMS}_0shot": 0, GSM8K: 5}


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRequest:
    """One model on some tasks.

    model: a folder, or with base_url the name under which the server has it.
    data_folder: where k2-tiny's problems lie. gsm8k_folder: GSM8K's files; None: the hub.
    limit: how many questions of each task; None: all.
    include_path: a folder with more tasks of the harness' form.
    tokenizer: a folder, for tasks that a server answers by probabilities.
    cache_folder: where answers are kept; None: nowhere. revision: what a server serves, where only its user
    knows.
    """

    model: str
    tasks: tuple[str, ...]
    data_folder: str | None = None
    gsm8k_folder: str | None = None
    base_url: str | None = None
    limit: int | None = None
    tensor_parallel_size: int = 1
    trust_remote_code: bool = False
    include_path: str | None = None
    tokenizer: str | None = None
    cache_folder: str | None = None
    revision: str | None = None


def choose_tasks(names: Sequence[str], gsm8k_folder: Path | None) -> tuple[str, ...]:
    """Return the tasks asked for; GSM8K where only its folder is given. Raises EvaluationError for none."""
    if names:
        return tuple(dict.fromkeys(names))
    if gsm8k_folder is not None:
        return (GSM8K,)
    raise EvaluationError(f"give {argument('tasks')}: {', '.join(TASKS)} or a task of lm-evaluation-harness")


def find_data(folder: Path | None) -> Path:
    """Return the folder of k2-tiny's problems: the one given, or the reference data's."""
    folder = folder or reference.data_folder()
    for name in ("heldout-problems.jsonl", "fewshot-problems.jsonl"):
        if not (folder / name).is_file():
            raise EvaluationError(
                f"{folder} has no {name}; give the folder of k2-tiny's problems by {argument('data_dir')}"
            )
    return folder


def check_model(model: str) -> str:
    """Return the model's folder, made absolute, once it is seen to hold a checkpoint."""
    folder = locate(model)
    if not folder.is_dir():
        raise CheckpointError(
            f"{model} is not a folder; give a checkpoint's folder, or a server by {argument('base_url')}"
        )
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise MissingFileError(f"{model} holds no model that can be evaluated: it has no {name}")
    CheckpointIndex(folder)
    return str(folder.resolve())


def check_gsm8k(folder: Path | None) -> str | None:
    """Return the folder of GSM8K as text, once its files are seen."""
    if folder is None:
        return None
    for name in GSM8K_FILES:
        if not (folder / name).is_file():
            raise EvaluationError(f"{folder} has no {name}; it needs GSM8K's train.jsonl and test.jsonl")
    return str(folder.resolve())
