"""From the user's options to requests, one a model; every check that needs no model comes first."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moe4.arguments import argument
from moe4.errors import EvaluationError
from moe4.evaluate.harness.backend import require_harness
from moe4.evaluate.harness.cache import default_cache_folder
from moe4.evaluate.harness.request import (
    GSM8K,
    TASKS,
    EvaluationRequest,
    check_gsm8k,
    check_model,
    choose_tasks,
    find_data,
)
from moe4.evaluate.harness.results import Score, ScoreComparison
from moe4.evaluate.harness.run import evaluate_model
from moe4.evaluate.result_files import to_json
from moe4.evaluate.server import check_server, normalise_url
from moe4.files.durable import check_output, write_output
from moe4.progress import OnProgress, ignore
from moe4.strict_json import JsonObject
from moe4.vllm_facts.distribution import require_vllm


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationOptions:
    """The options of `moe4 eval`."""

    model: str
    against: str | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    data_folder: Path | None = None
    gsm8k_folder: Path | None = None
    base_url: str | None = None
    tensor_parallel_size: int = 1
    trust_remote_code: bool = False
    output: Path | None = None
    include_path: Path | None = None
    tokenizer: Path | None = None
    cache_folder: Path | None = None
    use_cache: bool = True
    revision: str | None = None

    @property
    def names_a_task(self) -> bool:
        """Whether a task is named, or GSM8K by its folder."""
        return bool(self.tasks) or self.gsm8k_folder is not None


def plan_requests(options: EvaluationOptions) -> list[EvaluationRequest]:
    """Return what to evaluate, the baseline first. Raises a Moe4Error for whatever cannot be."""
    require_harness()
    if options.base_url is None:
        require_vllm()
    if options.limit is not None and options.limit < 1:
        raise EvaluationError(f"{argument('limit', options.limit)} leaves no question; give at least 1")
    tasks = choose_tasks(options.tasks, options.gsm8k_folder)
    gsm8k_folder = check_gsm8k(options.gsm8k_folder)
    needs_data = options.data_folder is not None or bool(set(tasks) & (set(TASKS) - {GSM8K}))
    data_folder = str(find_data(options.data_folder)) if needs_data else None
    if options.include_path is not None and not options.include_path.is_dir():
        raise EvaluationError(f"{argument('include_path', options.include_path)} is not a folder")
    if options.tokenizer is not None and not options.tokenizer.is_dir():
        raise EvaluationError(f"{argument('tokenizer', options.tokenizer)} is not a folder")
    for name, value in (("tokenizer", options.tokenizer), ("revision", options.revision)):
        if value is not None and options.base_url is None:
            raise EvaluationError(f"{argument(name)} goes with {argument('base_url')}: a folder has its own")
    cache_folder = (options.cache_folder or default_cache_folder()).absolute() if options.use_cache else None
    if options.output is not None:
        check_output(options.output)
    base_url = normalise_url(options.base_url) if options.base_url is not None else None
    requests = []
    for model in filter(None, (options.against, options.model)):
        if base_url is not None:
            check_server(base_url, model)
        requests.append(
            EvaluationRequest(
                model=model if base_url is not None else check_model(model),
                tasks=tasks,
                data_folder=data_folder,
                gsm8k_folder=gsm8k_folder,
                base_url=base_url,
                limit=options.limit,
                tensor_parallel_size=options.tensor_parallel_size,
                trust_remote_code=options.trust_remote_code,
                include_path=str(options.include_path.absolute()) if options.include_path else None,
                tokenizer=str(options.tokenizer.absolute()) if options.tokenizer else None,
                cache_folder=str(cache_folder) if cache_folder else None,
                revision=options.revision,
            )
        )
    return requests


def run_evaluation(
    options: EvaluationOptions, say: Callable[[str], None], on_progress: OnProgress = ignore
) -> ScoreComparison:
    """Evaluate the baseline, if there is one, and the release. `say` gets a line before and after each."""
    requests = plan_requests(options)
    names = [name for name in (options.against, options.model) if name]
    found: list[dict[str, Score]] = []
    for request, name in zip(requests, names, strict=True):
        say(f"evaluating {name} on {', '.join(request.tasks)}")
        start = time.monotonic()
        found.append(evaluate_model(request, on_progress))
        questions = sum(len(score.samples) for score in found[-1].values())
        say(f"evaluated  {name}: {questions} questions in {time.monotonic() - start:.0f} s")
    return ScoreComparison(
        release=options.model,
        scores=found[-1],
        baseline=options.against,
        baseline_scores=found[0] if options.against else None,
    )


def write_scores(path: Path, comparison: ScoreComparison) -> None:
    """Write the scores and every answer as JSON, whole or not at all."""
    write_json(path, to_json(comparison.to_file(with_answers=True)))


def write_json(path: Path, content: JsonObject) -> None:
    """Write a JSON file, whole or not at all. Raises OutputError."""
    write_output(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
