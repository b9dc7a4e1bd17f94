"""Verify, evaluate, compare, check tool calls, write report and card; each result lies in RELEASE/proof.

What is there already and was measured of the same files with the same options is not measured again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe4.checkpoint.report_file import PROOF_FOLDER
from moe4.checkpoint.source import read_json_object
from moe4.errors import EvaluationError
from moe4.escape import visible
from moe4.evaluate.comparison.compare import CompareOptions, compare, find_text
from moe4.evaluate.harness.cache import default_cache_folder, folder_identity
from moe4.evaluate.harness.evaluation import (
    EvaluationOptions,
    plan_requests,
    run_evaluation,
    write_json,
    write_scores,
)
from moe4.evaluate.harness.results import ScoreComparison
from moe4.evaluate.result_files import (
    COMPARISON,
    EVALUATION,
    TOOLCHECK,
    ComparisonFile,
    EvaluationFile,
    Result,
    ToolcheckFile,
    read_result,
    to_json,
)
from moe4.evaluate.toolcheck.client import Endpoint
from moe4.evaluate.toolcheck.requests import request_files
from moe4.evaluate.toolcheck.run import Replies, ToolcheckOptions, ask_endpoints, judge, load_requests
from moe4.files.durable import make_folder, write_output
from moe4.progress import OnProgress, Pace, ignore
from moe4.publish.card import card_path, check_names, render_card
from moe4.publish.proof import read_proof
from moe4.publish.report_page import render_report
from moe4.serve.command import ServeOptions
from moe4.serve.run import prepare, serving
from moe4.units import percent
from moe4.verify.checks import verify
from moe4.vllm_facts import flags

PARTS = ("evaluation", "comparison", "tools")
# The short form: enough to see that everything works, and differences of a few points.
QUICK_QUESTIONS, QUICK_SEQUENCES, QUICK_REQUESTS = 100, 20, 20

Say = Callable[[str], None]
Step = Callable[["ProveOptions", "_Stamp", Say, OnProgress], dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProveOptions:
    """The options of `moe4 prove`."""

    source: Path
    release: Path
    quick: bool = False
    tasks: tuple[str, ...] = ()
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
    trust_remote_code: bool = False
    again: bool = False

    @property
    def cache(self) -> Path:
        return self.cache_folder or default_cache_folder()


@dataclass(frozen=True, kw_only=True, slots=True)
class Proved:
    """What was found; None for a part that was left out. `report` and `card`: the files that were written."""

    source: Path
    release: Path
    quick: bool
    evaluation: EvaluationFile | None
    comparison: ComparisonFile | None
    tools: ToolcheckFile | None
    report: Path
    card: Path
    failures: tuple[str, ...] = ()
    """What is shown to be below the bars that were set."""

    @property
    def ok(self) -> bool:
        """Whether nothing is shown to be below its bar."""
        return not self.failures

    def __str__(self) -> str:
        return describe(self)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types; no part that was left out."""
        parts = {"evaluation": self.evaluation, "comparison": self.comparison, "tools": self.tools}
        return {
            "source": str(self.source),
            "release": str(self.release),
            "verified": True,
            "quick": self.quick,
            **{name: to_json(part) for name, part in parts.items() if part is not None},
            "report": str(self.report),
            "card": str(self.card),
            "failures": list(self.failures),
        }


def prove(options: ProveOptions, say: Say, on_progress: OnProgress = ignore) -> Proved:
    """Return what was found, by part. Raises a Moe4Error for what cannot be measured, before it begins."""
    _check_options(options)
    folder = options.release / PROOF_FOLDER
    say(f"verifying {options.release}")
    verifying = Pace(on_progress, "verifying")
    verified = verify(options.release, options.source, on_progress=verifying.count)
    if not verified["ok"]:
        raise EvaluationError(
            f"{options.release} is not sound, so nothing is measured: {verified['problems'][0]}"
        )
    make_folder(folder)
    measuring = _Measuring(options=options, stamp=_Stamp(options), say=say, on_progress=on_progress)
    evaluation = measuring.part("evaluation", EVALUATION, EvaluationFile, _evaluate)
    comparison = measuring.part("comparison", COMPARISON, ComparisonFile, _compare)
    tools = measuring.part("tools", TOOLCHECK, ToolcheckFile, _check_tools)
    proof = read_proof(options.release)
    page = folder / "report.html"
    write_output(page, render_report(proof))
    card = render_card(proof, options.repo, options.base_model, options.license_name)
    write_output(card_path(options.release), card)
    found = Proved(
        source=options.source,
        release=options.release,
        quick=options.quick,
        evaluation=evaluation,
        comparison=comparison,
        tools=tools,
        report=page,
        card=card_path(options.release),
    )
    return replace(found, failures=tuple(failures(found, options)))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measuring:
    """The parts of one run: each is measured and written, or read where it was measured already."""

    options: ProveOptions
    stamp: "_Stamp"
    say: Say
    on_progress: OnProgress

    def part(self, part: str, name: str, kind: type[Result], step: Step) -> Result | None:
        """Return the result of a part; None for one that is skipped."""
        if part in self.options.skip:
            return None
        path = self.options.release / PROOF_FOLDER / name
        began = time.monotonic()
        if not self.options.again and self.stamp.is_of(path):
            found = read_result(path, kind)
            self.say(f"{part}: measured already, {path}")
            return found
        measured = step(self.options, self.stamp, self.say, self.on_progress)
        write_json(path, {"version": 1, **measured, "stamp": self.stamp.value})
        self.say(f"{part}: {time.monotonic() - began:.0f} s")
        return read_result(path, kind)


class _Stamp:
    """What a result depends on: both models' files, and the options."""

    def __init__(self, options: ProveOptions) -> None:
        self.source = folder_identity(options.source, options.cache)
        self.release = folder_identity(options.release, options.cache)
        asked = [
            options.quick,
            options.tasks,
            options.limit,
            [_content(path) for path in _files(options)],
        ]
        self.value = hashlib.sha256(
            json.dumps([self.source, self.release, asked], default=str).encode()
        ).hexdigest()

    def is_of(self, path: Path) -> bool:
        """Say whether an earlier result is there and was measured of the same."""
        return path.is_file() and read_json_object(path).get("stamp") == self.value


def _files(options: ProveOptions) -> list[Path]:
    """Return the files of text and requests that are read."""
    text = [] if "comparison" in options.skip else [find_text(options.source, options.data)]
    return [*text, *([] if "tools" in options.skip else request_files(options.requests))]


def _content(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from None


def _check_options(options: ProveOptions) -> None:
    """Make sure that the options make sense and there is something to ask, before anything is measured."""
    unknown = set(options.skip) - set(PARTS)
    if unknown:
        raise EvaluationError(f"--skip {sorted(unknown)[0]}: expected one of {', '.join(PARTS)}")
    for name, bar in (("--min-recovery", options.min_recovery), ("--min-agreement", options.min_agreement)):
        if not 0 <= bar <= 1:
            raise EvaluationError(f"{name} {bar:g} is no share: give 0 to 1, such as 0.99")
    check_names(options.repo, options.base_model, options.license_name)
    if "evaluation" not in options.skip and not options.tasks:
        raise EvaluationError("give --task, such as gsm8k, or --skip evaluation")
    for path in _files(options):
        _content(path)
    if "evaluation" not in options.skip:
        plan_requests(_evaluation_options(options))


def _evaluate(options: ProveOptions, stamp: _Stamp, say: Say, on_progress: OnProgress) -> dict[str, Any]:
    found: ScoreComparison = run_evaluation(_evaluation_options(options), say, on_progress)
    write_scores(options.release / PROOF_FOLDER / "answers.json", found)
    return found.as_dict()


def _evaluation_options(options: ProveOptions) -> EvaluationOptions:
    return EvaluationOptions(
        model=str(options.release),
        against=str(options.source),
        tasks=options.tasks,
        limit=options.limit or (QUICK_QUESTIONS if options.quick else None),
        cache_folder=options.cache,
        tensor_parallel_size=options.tensor_parallel_size,
        trust_remote_code=options.trust_remote_code,
    )


def _compare(options: ProveOptions, stamp: _Stamp, say: Say, on_progress: OnProgress) -> dict[str, Any]:
    say("comparing predictions, token by token")
    compare_options = CompareOptions(
        source=options.source,
        release=options.release,
        data=options.data,
        num_sequences=QUICK_SEQUENCES if options.quick else 100,
        trust_remote_code=options.trust_remote_code,
    )
    return to_json(compare(compare_options, say, on_progress))


def _check_tools(options: ProveOptions, stamp: _Stamp, say: Say, on_progress: OnProgress) -> dict[str, Any]:
    """Ask one server after the other, so that the two models need not fit beside each other."""
    tool_options = ToolcheckOptions(
        base_url="",
        requests=options.requests,
        limit=QUICK_REQUESTS if options.quick else None,
        output=options.release / PROOF_FOLDER / "tool-answers.jsonl",
    )
    requests = load_requests(tool_options)
    endpoints: dict[str, Endpoint] = {}
    replies: Replies = {}
    serve_options = ServeOptions(
        port=0,
        tensor_parallel_size=options.tensor_parallel_size,
        extra=(flags.TRUST_REMOTE_CODE,) if options.trust_remote_code else (),
    )
    models = {"baseline": (options.source, stamp.source), "release": (options.release, stamp.release)}
    for name, (folder, identity) in models.items():
        say(f"serving {folder} and asking it {len(requests)} tool requests, whole and streamed")
        with serving(prepare(folder, serve_options, os.environ), folder, on_progress=on_progress) as server:
            endpoint = Endpoint(
                base_url=server.url, model=server.model, api_key=server.key, identity=identity
            )
            endpoints[name] = endpoint
            pace = Pace(on_progress, f"asking the {name} tool requests")
            replies |= ask_endpoints(tool_options, requests, {name: endpoint}, pace.count)
    return to_json(judge(tool_options, requests, endpoints, replies))


def failures(result: Proved, options: ProveOptions) -> list[str]:
    """Return what is shown to be below the bar; what may be noise is not."""
    found = []
    for task, entry in (result.evaluation.tasks if result.evaluation else {}).items():
        interval = entry.change.recovery_interval if entry.change else None
        if interval and interval[1] < options.min_recovery:
            found.append(f"recovery on {task} is below {percent(options.min_recovery, 1)}")
    agreement = result.tools.agreement if result.tools else None
    decisions = agreement.decision_agreement if agreement else None
    if decisions and decisions.interval[1] < options.min_agreement:
        found.append(f"decisions to call a tool agree on less than {percent(options.min_agreement, 1)}")
    return found


def describe(result: Proved) -> str:
    """Return what was found in a few lines."""
    lines = []
    for task, entry in (result.evaluation.tasks if result.evaluation else {}).items():
        change, before = entry.change, entry.baseline_score
        line = f"{task}: " + ("" if before is None else f"{percent(before)} -> ") + percent(entry.score)
        if change and change.recovery is not None and change.recovery_interval:
            low, high = change.recovery_interval
            line += f", recovery {percent(change.recovery)} [{100 * low:.2f}, {100 * high:.2f}]"
        lines += [line, *([f"  {change.verdict}"] if change else [])]
    if result.comparison is not None:
        found = result.comparison
        lines.append(
            f"predictions: KL {found.kl.mean:.5f} nats a token, likeliest token the same for "
            f"{percent(found.top1_agreement)} of {found.num_tokens}"
        )
    if result.tools is not None:
        lines += _describe_tools(result.tools)
    lines += [f"report: {result.report}", f"card: {result.card}"]
    return "\n".join(map(visible, lines))


def _describe_tools(tools: ToolcheckFile) -> Iterator[str]:
    decisions = tools.agreement.decision_agreement if tools.agreement else None
    if decisions:
        low, high = decisions.interval
        yield (
            f"tool calls: decisions agree on {percent(decisions.value, 1)} "
            f"[{100 * low:.1f}, {100 * high:.1f}] of {decisions.num} requests"
        )
    for name in ("tool_call_f1", "schema_accuracy", "calls_exact"):
        sides = [side for side in (tools.baseline, tools.release) if side is not None]
        found = [measure for side in sides if (measure := side.measures.get(name))]
        if len(found) == len(sides):
            shares = " -> ".join(percent(measure.value, 1) for measure in found)
            yield f"  {name.replace('_', ' ')}: {shares}"
