"""Verify, evaluate, compare, check tool calls, write report and card; each result lies in RELEASE/proof.

What is there already and was measured of the same files with the same options is not measured again.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe4.calibration.corpus import is_reference_model
from moe4.checkpoint.durable import make_folder, write_output
from moe4.checkpoint.report import PROOF_FOLDER
from moe4.checkpoint.source import read_json_object
from moe4.errors import EvaluationError
from moe4.escape import visible
from moe4.evaluate.cache import default_cache_folder, folder_identity
from moe4.evaluate.compare import CompareOptions, compare, find_text
from moe4.evaluate.files import COMPARISON, EVALUATION, TOOLCHECK, read_result
from moe4.evaluate.plan import EvaluationOptions, run_evaluation, write_json, write_scores
from moe4.evaluate.results import Comparison
from moe4.evaluate.server import api_key
from moe4.evaluate.toolcheck.client import Endpoint
from moe4.evaluate.toolcheck.plan import Replies, ToolcheckOptions, ask_endpoints, judge, load_requests
from moe4.prove.servers import serving
from moe4.publish.card import card_path, check_names, render_card
from moe4.publish.proof import read_proof
from moe4.publish.report import percent, render_report
from moe4.quantize.verify import verify

REFERENCE_TASK = "k2_tiny_problems_0shot"
PARTS = ("evaluation", "comparison", "tools")
# The short form: enough to see that everything works, and differences of a few points.
QUICK_QUESTIONS, QUICK_SEQUENCES, QUICK_REQUESTS = 100, 20, 20

Say = Callable[[str], None]


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


def prove(options: ProveOptions, say: Say) -> dict[str, Any]:
    """Return what was found, by part. Raises a Moe4Error for what cannot be measured, before it begins."""
    unknown = set(options.skip) - set(PARTS)
    if unknown:
        raise EvaluationError(f"--skip {sorted(unknown)[0]}: expected one of {', '.join(PARTS)}")
    _check_texts(options)
    check_names(options.repo, options.base_model, options.license_name)
    folder = options.release / PROOF_FOLDER
    say(f"verifying {options.release}")
    verified = verify(options.release, options.source)
    if not verified["ok"]:
        raise EvaluationError(
            f"{options.release} is not sound, so nothing is measured: {verified['problems'][0]}"
        )
    make_folder(folder)
    stamp = _Stamp(options)
    result: dict[str, Any] = {
        "source": str(options.source),
        "release": str(options.release),
        "verified": True,
        "quick": options.quick,
    }
    steps = {
        "evaluation": (EVALUATION, _evaluate),
        "comparison": (COMPARISON, _compare),
        "tools": (TOOLCHECK, _check_tools),
    }
    for part, (name, step) in steps.items():
        if part in options.skip:
            continue
        began = time.monotonic()
        found = None if options.again else stamp.read(folder / name)
        if found is None:
            found = step(options, stamp, say)
            write_json(folder / name, {"version": 1, **found, "stamp": stamp.value})
            say(f"{part}: {time.monotonic() - began:.0f} s")
        else:
            say(f"{part}: measured already, {folder / name}")
        result[part] = found
    proof = read_proof(options.release)
    write_output(folder / "report.html", render_report(proof))
    card = render_card(proof, options.repo, options.base_model, options.license_name)
    write_output(card_path(options.release), card)
    result["report"] = str(folder / "report.html")
    result["card"] = str(card_path(options.release))
    return result


class _Stamp:
    """What a result depends on: both models' files, and the options."""

    def __init__(self, options: ProveOptions) -> None:
        self.source = folder_identity(options.source, options.cache)
        self.release = folder_identity(options.release, options.cache)
        asked = [
            options.quick,
            options.tasks,
            options.limit,
            [_content(path) for path in (options.data, *options.requests) if path is not None],
        ]
        self.value = hashlib.sha256(
            json.dumps([self.source, self.release, asked], default=str).encode()
        ).hexdigest()

    def read(self, path: Path) -> dict[str, Any] | None:
        """Return an earlier result of the same, or None."""
        if not path.is_file():
            return None
        is_same = read_json_object(path).get("stamp") == self.value
        return read_result(path) if is_same else None


def _content(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from None


def _check_texts(options: ProveOptions) -> None:
    """Make sure that there is something to ask, before hours are spent on a part of it."""
    if "evaluation" not in options.skip and not options.tasks and not is_reference_model(options.source):
        raise EvaluationError(f"give --task, such as gsm8k: {options.source} has no task of its own")
    if "comparison" not in options.skip:
        find_text(options.source, options.data)


def _evaluate(options: ProveOptions, stamp: _Stamp, say: Say) -> dict[str, Any]:
    found: Comparison = run_evaluation(
        EvaluationOptions(
            model=str(options.release),
            against=str(options.source),
            tasks=options.tasks or (REFERENCE_TASK,),
            limit=options.limit or (QUICK_QUESTIONS if options.quick else None),
            cache_folder=options.cache,
            tensor_parallel_size=options.tensor_parallel_size,
            trust_remote_code=options.trust_remote_code,
        ),
        say,
    )
    write_scores(options.release / PROOF_FOLDER / "answers.json", found)
    return found.as_dict()


def _compare(options: ProveOptions, stamp: _Stamp, say: Say) -> dict[str, Any]:
    say("comparing predictions, token by token")
    compare_options = CompareOptions(
        source=options.source,
        release=options.release,
        data=options.data,
        num_sequences=QUICK_SEQUENCES if options.quick else 100,
        trust_remote_code=options.trust_remote_code,
    )
    return compare(compare_options, say)


def _check_tools(options: ProveOptions, stamp: _Stamp, say: Say) -> dict[str, Any]:
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
    models = {"baseline": (options.source, stamp.source), "release": (options.release, stamp.release)}
    for name, (folder, identity) in models.items():
        say(f"serving {folder} and asking it {len(requests)} tool requests, whole and streamed")
        with serving(
            folder,
            tensor_parallel_size=options.tensor_parallel_size,
            trust_remote_code=options.trust_remote_code,
        ) as (url, model):
            endpoint = Endpoint(base_url=url, model=model, api_key=api_key(), identity=identity)
            endpoints[name] = endpoint
            replies |= ask_endpoints(tool_options, requests, {name: endpoint}, lambda *_: None)
    return judge(tool_options, requests, endpoints, replies)


def failures(result: dict[str, Any], options: ProveOptions) -> list[str]:
    """Return what is shown to be below the bar; what may be noise is not."""
    found = []
    for task, entry in result.get("evaluation", {}).get("tasks", {}).items():
        interval = entry.get("change", {}).get("recovery_interval")
        if interval and interval[1] < options.min_recovery:
            found.append(f"recovery on {task} is below {percent(options.min_recovery, 1)}")
    agreement = result.get("tools", {}).get("agreement", {}).get("decision_agreement")
    if agreement and agreement["interval"][1] < options.min_agreement:
        found.append(f"decisions to call a tool agree on less than {percent(options.min_agreement, 1)}")
    return found


def describe(result: dict[str, Any]) -> str:
    """Return what was found in a few lines."""
    lines = []
    for task, entry in result.get("evaluation", {}).get("tasks", {}).items():
        metric, change = entry["metric"], entry["change"]
        line = f"{task}: {percent(entry['baseline'][metric])} -> {percent(entry['release'][metric])}"
        if change["recovery"] is not None and change["recovery_interval"]:
            low, high = change["recovery_interval"]
            line += f", recovery {percent(change['recovery'])} [{100 * low:.2f}, {100 * high:.2f}]"
        lines += [line, f"  {change['verdict']}"]
    if "comparison" in result:
        found = result["comparison"]
        lines.append(
            f"predictions: KL {found['kl']['mean']:.5f} nats a token, likeliest token the same for "
            f"{percent(found['top1_agreement'])} of {found['num_tokens']}"
        )
    if "tools" in result:
        tools = result["tools"]
        agreement = tools["agreement"]["decision_agreement"]
        low, high = agreement["interval"]
        lines.append(
            f"tool calls: decisions agree on {percent(agreement['value'], 1)} "
            f"[{100 * low:.1f}, {100 * high:.1f}] of {agreement['num']} requests"
        )
        for name in ("tool_call_f1", "schema_accuracy", "calls_exact"):
            before, after = (tools[side]["measures"][name] for side in ("baseline", "release"))
            if before and after:
                text = f"{percent(before['value'], 1)} -> {percent(after['value'], 1)}"
                lines.append(f"  {name.replace('_', ' ')}: {text}")
    lines += [f"report: {result['report']}", f"card: {result['card']}"]
    return "\n".join(map(visible, lines))
