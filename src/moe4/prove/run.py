"""Verify, evaluate, compare, check tool calls and answers; write report, card and results (RELEASE/proof).

What is there already and was measured of the same files with the same options is not measured again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moe4.checkpoint.index import PROBE_NAME
from moe4.checkpoint.report_file import PROOF_FOLDER
from moe4.checkpoint.source import read_json_object
from moe4.errors import EvaluationError
from moe4.escape import visible
from moe4.evaluate.comparison.compare import compare, find_text
from moe4.evaluate.harness.cache import folder_identity
from moe4.evaluate.harness.evaluation import run_evaluation, write_json, write_scores
from moe4.evaluate.harness.request import GSM8K_FILES
from moe4.evaluate.record import record_run
from moe4.evaluate.result_files import (
    ANSWERS,
    COMPARISON,
    EVALUATION,
    PROBE,
    TOOLCHECK,
    ComparisonFile,
    EvaluationFile,
    ProbeFile,
    Result,
    ToolcheckFile,
    read_result,
    to_json,
)
from moe4.evaluate.toolcheck.client import Endpoint
from moe4.evaluate.toolcheck.requests import request_files
from moe4.evaluate.toolcheck.run import Replies, ask_endpoints, judge, load_requests
from moe4.files.durable import file_sha256, make_folder, write_output
from moe4.probe.ask import ask_server, describe_shortly
from moe4.probe.check import ServerVerdict
from moe4.progress import OnProgress, Pace, ignore
from moe4.prove.options import ProveOptions, check_options
from moe4.publish.card_file import card_path, write_card
from moe4.publish.every_eval_ever import evaluation_logs
from moe4.publish.proof import read_proof
from moe4.publish.report_page import render_report
from moe4.publish.words import sentences
from moe4.serve.command import ServeOptions
from moe4.serve.run import RunningServer, prepare, serving
from moe4.strict_json import JsonObject
from moe4.units import percent
from moe4.verify.checks import verify
from moe4.vllm_facts import flags

MOST_FLIPS = 8  # of a task, on the page; answers.json has all

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Proved:
    """What was found; None for a part that was left out. `report` and `card`: the files that were written.

    left_out: the parts that could not be measured, with what each would need.
    """

    source: Path
    release: Path
    quick: bool
    evaluation: EvaluationFile | None
    comparison: ComparisonFile | None
    tools: ToolcheckFile | None
    probe: ProbeFile | None
    report: Path
    card: Path
    left_out: dict[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    """What is shown to be below the bars that were set."""

    @property
    def ok(self) -> bool:
        """Whether nothing is shown to be below its bar."""
        return not self.failures

    def __str__(self) -> str:
        return describe(self)

    def as_dict(self) -> JsonObject:
        """Return plain JSON types; no part that was left out."""
        parts = {
            "evaluation": self.evaluation,
            "comparison": self.comparison,
            "tools": self.tools,
            "probe": self.probe,
        }
        return {
            "source": str(self.source),
            "release": str(self.release),
            "verified": True,
            "quick": self.quick,
            **{name: to_json(part) for name, part in parts.items() if part is not None},
            "left_out": self.left_out,
            "report": str(self.report),
            "card": str(self.card),
            "failures": list(self.failures),
        }


def prove(options: ProveOptions, say: Say, on_progress: OnProgress = ignore) -> Proved:
    """Return what was found, by part. Raises a Moe4Error for what cannot be measured, before it begins."""
    left_out = check_options(options)
    folder = options.release / PROOF_FOLDER
    say(f"verifying {options.release}")
    verifying = Pace(on_progress, "verifying")
    verified = verify(options.release, options.source, on_progress=verifying.count)
    if not verified.ok:
        raise EvaluationError(
            f"{options.release} does not pass moe4 verify, so nothing is measured: {verified.problems[0]}"
        )
    for part, why in left_out.items():
        say(f"{part}: not measured: {why}")
    make_folder(folder)
    measuring = _Measuring(
        options=options,
        identity=_Identity(options),
        say=say,
        on_progress=on_progress,
        without=tuple(left_out),
    )
    evaluation = measuring.part("evaluation", EVALUATION, EvaluationFile, measuring.evaluate)
    comparison = measuring.part("comparison", COMPARISON, ComparisonFile, measuring.compare)
    tools = measuring.part("tools", TOOLCHECK, ToolcheckFile, measuring.check_tools)
    probe = measuring.part("probe", PROBE, ProbeFile, measuring.ask_probe)
    page = _publish(options, say)
    found = Proved(
        source=options.source,
        release=options.release,
        quick=options.quick,
        evaluation=evaluation,
        comparison=comparison,
        tools=tools,
        probe=probe,
        report=page,
        card=card_path(options.release),
        left_out=left_out,
    )
    return replace(found, failures=tuple(failures(found, options)))


def _publish(options: ProveOptions, say: Say) -> Path:
    """Write the page, the results for other tools and the card; return the page's place."""
    proof = read_proof(options.release)
    folder = options.release / PROOF_FOLDER
    page = folder / "report.html"
    write_output(page, render_report(proof))
    for name, log in evaluation_logs(proof, options.names).items():
        write_json(folder / name, log)
    for remark in write_card(proof, options.names).remarks:
        say(remark)
    return page


class _Measuring:
    """The parts of one run: each is measured and written, or read where it was measured already."""

    def __init__(
        self,
        *,
        options: ProveOptions,
        identity: "_Identity",
        say: Say,
        on_progress: OnProgress,
        without: tuple[str, ...],
    ) -> None:
        self._options, self._identity, self._say = options, identity, say
        self._on_progress = on_progress
        self._without = (*options.skip, *without)
        self._probe_result: ServerVerdict | None = None

    def part(self, part: str, name: str, kind: type[Result], measure: Callable[[], Result]) -> Result | None:
        """Return the result of a part; None for one that is left out."""
        if part in self._without:
            return None
        path = self._options.release / PROOF_FOLDER / name
        stamp = self._identity.stamp(part)
        began = time.monotonic()
        if not self._options.again and path.is_file() and read_json_object(path).get("stamp") == stamp:
            found = read_result(path, kind)
            self._say(f"{part}: measured already, {path}")
            return found
        found = measure()
        added = {"version": found.version, "run": record_run(self._options.command()), "stamp": stamp}
        write_json(path, found.model_copy(update=added).as_dict())
        self._say(f"{part}: {time.monotonic() - began:.0f} s")
        return read_result(path, kind)

    def evaluate(self) -> EvaluationFile:
        """Ask both models the tasks' questions."""
        found = run_evaluation(self._options.evaluation, self._say, self._on_progress)
        write_scores(self._options.release / PROOF_FOLDER / ANSWERS, found)
        return found.to_file(MOST_FLIPS)

    def compare(self) -> ComparisonFile:
        """Compare both models' predictions of a text."""
        self._say("comparing predictions, token by token")
        return compare(self._options.comparison, self._say, self._on_progress)

    def check_tools(self) -> ToolcheckFile:
        """Ask one server after the other, so that the two models need not fit beside each other."""
        options = self._options
        asked = replace(options.toolcheck, output=options.release / PROOF_FOLDER / "tool-answers.jsonl")
        requests = load_requests(asked)
        endpoints: dict[str, Endpoint] = {}
        replies: Replies = {}
        models = {
            "baseline": (options.source, self._identity.source),
            "release": (options.release, self._identity.release),
        }
        for name, (folder, identity) in models.items():
            self._say(f"serving {folder} and asking it {len(requests)} tool requests, whole and streamed")
            with self._serving(folder) as server:
                endpoint = Endpoint(
                    base_url=server.url, model=server.model, api_key=server.key, identity=identity
                )
                endpoints[name] = endpoint
                pace = Pace(self._on_progress, f"asking the {name} tool requests")
                replies |= ask_endpoints(asked, requests, {name: endpoint}, pace.count)
                if name == "release" and "probe" not in self._without:
                    self._probe_result = self._ask_probe(server)
        return judge(asked, requests, endpoints, replies)

    def ask_probe(self) -> ProbeFile:
        """Ask a server of the release for its expected answers, unless it was asked beside its tool calls."""
        release = self._options.release
        found = self._probe_result
        if found is None:
            self._say(f"serving {release} and asking it for its expected answers")
            with self._serving(release) as server:
                found = self._ask_probe(server)
        return ProbeFile(passed=bool(found["ok"]), summary=describe_shortly(found))

    def _ask_probe(self, server: RunningServer) -> ServerVerdict:
        pace = Pace(self._on_progress, "asking for the expected answers")
        return ask_server(
            self._options.release, server.url, model=server.model, key=server.key, on_progress=pace.count
        )

    def _serving(self, folder: Path) -> AbstractContextManager[RunningServer]:
        options = ServeOptions(
            port=0,
            tensor_parallel_size=self._options.tensor_parallel_size,
            extra=(flags.TRUST_REMOTE_CODE,) if self._options.trust_remote_code else (),
        )
        return serving(prepare(folder, options, os.environ), folder, on_progress=self._on_progress)


class _Identity:
    """What results depend on: both models' files, and for each part the options that it reads."""

    def __init__(self, options: ProveOptions) -> None:
        self.source = folder_identity(options.source, options.cache)
        self.release = folder_identity(options.release, options.cache)
        self._options = options

    def stamp(self, part: str) -> str:
        """Return the digest of everything a part's result depends on."""
        options = self._options
        asked: dict[str, Callable[[], list[Any]]] = {
            "evaluation": lambda: [options.quick, options.tasks, options.limit, *self._questions()],
            "comparison": lambda: [options.quick, _content(find_text(options.data))],
            "tools": lambda: [options.quick, [_content(path) for path in request_files(options.requests)]],
            "probe": lambda: [_content(options.release / PROBE_NAME)],
        }
        return hashlib.sha256(
            json.dumps([self.source, self.release, part, asked[part]()], default=str).encode()
        ).hexdigest()

    def _questions(self) -> list[str]:
        folder = self._options.gsm8k_folder
        return [] if folder is None else [_content(folder / name) for name in GSM8K_FILES]


def _content(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from None


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
    if result.probe is not None and not result.probe.passed:
        found.append("a server of the release does not give the answers that were stored with it")
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
        lines += [line, *(f"  {sentence}" for sentence in sentences(entry))]
    if result.comparison is not None:
        found = result.comparison
        lines.append(
            f"predictions: KL {found.kl.mean:.5f} nats a token, likeliest token the same for "
            f"{percent(found.top1_agreement)} of {found.num_tokens}"
        )
    if result.tools is not None:
        lines += _describe_tools(result.tools)
    if result.probe is not None:
        lines.append(f"probe: {'PASS' if result.probe.passed else 'FAIL'}: {result.probe.summary}")
    lines += [f"{part}: not measured: {why}" for part, why in result.left_out.items()]
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
