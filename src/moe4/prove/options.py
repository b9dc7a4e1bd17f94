"""What `moe4 prove` is asked, what of it can be measured here, and what is wrong with it."""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

from moe4.arguments import argument
from moe4.checkpoint.index import PROBE_NAME
from moe4.errors import CalibrationError, EvaluationError
from moe4.evaluate.comparison.compare import CompareOptions, check_comparison
from moe4.evaluate.harness.cache import default_cache_folder
from moe4.evaluate.harness.evaluation import EvaluationOptions, plan_requests
from moe4.evaluate.toolcheck.run import ToolcheckOptions, load_requests
from moe4.probe.ask import find_probe
from moe4.publish.card import CardNames
from moe4.publish.card_file import read_card
from moe4.reference import is_asked_for
from moe4.vllm_facts.distribution import require_vllm

PARTS = ("evaluation", "comparison", "tools", "probe")
# The short form: enough to see that everything works, and differences of a few points.
QUICK_QUESTIONS, QUICK_SEQUENCES, QUICK_REQUESTS = 100, 20, 20
NO_VLLM = "vLLM is not installed: pip install 'moe4[cpu]' or, with NVIDIA GPUs, 'moe4[gpu]'"
NO_PROBE = f"the release has no {PROBE_NAME}: moe4 probe OUT makes it"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProveOptions:
    """The options of `moe4 prove`."""

    source: Path
    release: Path
    quick: bool = False
    tasks: tuple[str, ...] = ()
    gsm8k_folder: Path | None = None
    limit: int | None = None
    data: Path | None = None
    requests: tuple[Path, ...] = ()
    skip: tuple[str, ...] = ()
    min_recovery: float = 0.99
    min_agreement: float = 0.97
    cache_folder: Path | None = None
    repo: str | None = None
    base_model: str | None = None
    license_name: str | None = None
    tensor_parallel_size: int = 1
    family_as_is: bool = False
    trust_remote_code: bool = False
    again: bool = False

    @property
    def cache(self) -> Path:
        return self.cache_folder or default_cache_folder()

    @property
    def names(self) -> CardNames:
        return CardNames(repo=self.repo, base_model=self.base_model, license_name=self.license_name)

    @property
    def evaluation(self) -> EvaluationOptions:
        return EvaluationOptions(
            model=str(self.release),
            against=str(self.source),
            tasks=self.tasks,
            gsm8k_folder=self.gsm8k_folder,
            limit=self.limit or (QUICK_QUESTIONS if self.quick else None),
            cache_folder=self.cache,
            tensor_parallel_size=self.tensor_parallel_size,
            trust_remote_code=self.trust_remote_code,
        )

    @property
    def comparison(self) -> CompareOptions:
        return CompareOptions(
            source=self.source,
            release=self.release,
            data=self.data,
            num_sequences=QUICK_SEQUENCES if self.quick else 100,
            family_as_is=self.family_as_is,
            trust_remote_code=self.trust_remote_code,
        )

    @property
    def toolcheck(self) -> ToolcheckOptions:
        return ToolcheckOptions(
            base_url="", requests=self.requests, limit=QUICK_REQUESTS if self.quick else None
        )

    def command(self) -> list[str]:
        """Return the words of the command that measures the same, of the folders SOURCE and OUT."""
        words = ["moe4", "prove", "SOURCE", "OUT", *(["--quick"] if self.quick else [])]
        words += [word for task in self.tasks for word in ("--task", task)]
        words += ["--gsm8k-dir", _name(self.gsm8k_folder)] if self.gsm8k_folder else []
        words += ["--limit", str(self.limit)] if self.limit else []
        words += ["--data", _name(self.data)] if self.data else []
        words += [word for path in self.requests for word in ("--requests", _name(path))]
        words += [word for part in self.skip for word in ("--skip", part)]
        words += ["-tp", str(self.tensor_parallel_size)] if self.tensor_parallel_size != 1 else []
        words += ["--family-as-is"] if self.family_as_is else []
        return [*words, *(["--trust-remote-code"] if self.trust_remote_code else [])]


def _name(path: Path) -> str:
    """Return a file's name, without the folder that only this machine has."""
    return str(path) if is_asked_for(path) else path.name


def check_options(options: ProveOptions) -> dict[str, str]:
    """Return the parts that cannot be measured as asked, with what would be needed for each.

    Whatever was asked for by name and cannot be had is an error: a Moe4Error.
    """
    unknown = set(options.skip) - set(PARTS)
    if unknown:
        raise EvaluationError(f"{argument('skip', sorted(unknown)[0])}: expected one of {', '.join(PARTS)}")
    for name, share in (("min_recovery", options.min_recovery), ("min_agreement", options.min_agreement)):
        if not (math.isfinite(share) and 0 <= share <= 2):
            raise EvaluationError(f"{argument(name, share)}: expected a share, such as 0.99")
    for name, number in (
        ("limit", options.limit),
        ("tensor_parallel_size", options.tensor_parallel_size),
    ):
        if number is not None and number < 1:
            raise EvaluationError(f"{argument(name, number)}: expected at least 1")
    options.names.check()
    read_card(options.release)
    checks = {
        "evaluation": _check_evaluation,
        "comparison": _check_text,
        "tools": _check_tools,
        "probe": _check_probe,
    }
    found = {part: check(options) for part, check in checks.items() if part not in options.skip}
    return {part: why for part, why in found.items() if why is not None}


def _check_evaluation(options: ProveOptions) -> str | None:
    if not options.evaluation.names_a_task:
        return f"give {argument('tasks')}, such as gsm8k or any other of lm-evaluation-harness"
    require_vllm()
    plan_requests(options.evaluation)
    return None


def _check_text(options: ProveOptions) -> str | None:
    try:
        check_comparison(options.comparison)
    except CalibrationError as error:
        if options.data is not None:
            raise
        return f"moe4's own text does not suit this model ({error}): give {argument('data', 'FILE.jsonl')}"
    return None


def _check_tools(options: ProveOptions) -> str | None:
    load_requests(options.toolcheck)
    if options.requests:
        require_vllm()
    return None if _has_vllm() else NO_VLLM


def _check_probe(options: ProveOptions) -> str | None:
    if not (options.release / PROBE_NAME).is_file():
        return NO_PROBE
    find_probe(options.release)
    return None if _has_vllm() else NO_VLLM


def _has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None
