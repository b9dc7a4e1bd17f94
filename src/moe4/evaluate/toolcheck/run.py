"""Ask one endpoint or two every request, whole and streamed, and sum up what came back."""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from moe4.errors import EvaluationError, ServeError
from moe4.escape import visible
from moe4.evaluate.result_files import ToolcheckFile
from moe4.evaluate.server import api_key, list_models, normalise_url
from moe4.evaluate.toolcheck.checks import check
from moe4.evaluate.toolcheck.client import Endpoint, Reply, ask
from moe4.evaluate.toolcheck.requests import (
    ToolRequest,
    read_requests,
    reference_decisions,
    request_files,
)
from moe4.evaluate.toolcheck.summary import Outcome, compare_endpoints, parse_thresholds, summarize_endpoint
from moe4.files.durable import append_line, check_output
from moe4.files.own import OwnFile
from moe4.files.regular import read_bytes
from moe4.schema import Growing, Own, given
from moe4.strict_json import JsonObject

FIRST_KEY = '{"data_index":'  # of every line of --output
SAMPLING = ("temperature", "top_p", "top_k", "seed", "min_p", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolcheckOptions:
    """The options of `moe4 toolcheck`."""

    base_url: str
    model: str | None = None
    against: str | None = None
    against_model: str | None = None
    requests: tuple[Path, ...] = ()
    reference: Path | None = None
    output: Path | None = None
    limit: int | None = None
    concurrency: int = 8
    max_retries: int = 3
    timeout_seconds: float = 600.0
    keep_sampling: bool = False
    stream: bool = True
    thresholds: tuple[str, ...] = ()


Progress = Callable[[int, int], None]
"""Called with the answers there are and all that will be."""
Replies = dict[tuple[str, int, bool], Reply]
"""By endpoint's name, request's number, and whether it was streamed."""


def run_toolcheck(options: ToolcheckOptions, progress: Progress) -> ToolcheckFile:
    """Return the result. Raises EvaluationError for bad requests, ServeError where nothing answers."""
    parse_thresholds(options.thresholds)
    if options.reference is not None:
        reference_decisions(options.reference)  # a bad file is found before hours of questions
    if options.output is not None:
        check_output(options.output)
    requests = load_requests(options)
    endpoints = {"release": find_endpoint(options.base_url, options.model)}
    if options.against is not None:
        endpoints["baseline"] = find_endpoint(options.against, options.against_model)
    return judge(options, requests, endpoints, ask_endpoints(options, requests, endpoints, progress))


def load_requests(options: ToolcheckOptions) -> list[ToolRequest]:
    """Return the requests to ask, greedy unless their own sampling is to be kept. Raises EvaluationError."""
    requests = [
        request for path in request_files(options.requests) for request in read_requests(path, options.limit)
    ]
    return requests if options.keep_sampling else [_greedy(request) for request in requests]


def ask_endpoints(
    options: ToolcheckOptions,
    requests: Sequence[ToolRequest],
    endpoints: dict[str, Endpoint],
    progress: Progress,
) -> Replies:
    """Ask every endpoint everything; the replies of endpoints asked one after another can be joined."""
    return asyncio.run(_Run(options, requests, endpoints, progress).ask_all())


def judge(
    options: ToolcheckOptions,
    requests: Sequence[ToolRequest],
    endpoints: dict[str, Endpoint],
    replies: Replies,
) -> ToolcheckFile:
    """Return the result: `release`, and where it was asked `baseline` and their `agreement`."""
    thresholds = parse_thresholds(options.thresholds)
    reference = reference_decisions(options.reference) if options.reference else {}
    outcomes = {name: _outcomes(requests, replies, name, reference, options.stream) for name in endpoints}
    if not any(outcome.findings for outcome in outcomes["release"]):
        error = outcomes["release"][0].whole.error
        url = endpoints["release"].base_url
        raise ServeError(f"{url} answered none of {len(requests)} requests: {error}")
    if "baseline" in outcomes and not any(o.expected_call is not None for o in outcomes["release"]):
        outcomes["release"] = _refer_to(outcomes["release"], outcomes["baseline"])
    results = {
        name: summarize_endpoint(endpoint.model, outcomes[name], thresholds)
        for name, endpoint in endpoints.items()
    }
    agreement = None
    if "baseline" in outcomes:
        agreement = compare_endpoints(outcomes["release"], outcomes["baseline"])
    return ToolcheckFile(
        requests=[visible(path.name) for path in request_files(options.requests)],
        num_requests=len(requests),
        greedy=not options.keep_sampling,
        release=results["release"],
        **given(baseline=results.get("baseline"), agreement=agreement),
    )


class _Run:
    """All requests to all endpoints, at most `concurrency` at a time; answers are kept as they come."""

    def __init__(
        self,
        options: ToolcheckOptions,
        requests: Sequence[ToolRequest],
        endpoints: dict[str, Endpoint],
        progress: Progress,
    ) -> None:
        self._options, self._requests, self._endpoints = options, requests, endpoints
        self._progress = progress
        self._replies: Replies = {}
        self._kept = _read_kept(options.output) if options.output else {}
        self._total = len(requests) * len(endpoints) * (2 if options.stream else 1)

    async def ask_all(self) -> Replies:
        """Return replies by (endpoint, number, streamed)."""
        options = self._options
        limits = httpx.Limits(max_connections=options.concurrency)
        slots = asyncio.Semaphore(options.concurrency)
        ways = (False, True) if options.stream else (False,)
        async with httpx.AsyncClient(timeout=options.timeout_seconds, limits=limits) as client:
            jobs = [
                self._ask(client, slots, name, number, stream)
                for name in self._endpoints
                for number in range(len(self._requests))
                for stream in ways
            ]
            await asyncio.gather(*jobs)
        return self._replies

    async def _ask(
        self, client: httpx.AsyncClient, slots: asyncio.Semaphore, name: str, number: int, stream: bool
    ) -> None:
        endpoint, request = self._endpoints[name], self._requests[number]
        key = _request_hash(endpoint, request, stream)
        reply = self._kept.get(key)
        if reply is None:
            async with slots:
                began = time.monotonic()
                reply = await ask(
                    client, endpoint, request.body, stream=stream, max_retries=self._options.max_retries
                )
            if self._options.output is not None:
                answer = KeptAnswer(
                    data_index=number + 1,
                    endpoint=name,
                    streamed=stream,
                    request={**request.body, "model": endpoint.model},
                    status="success" if reply.error is None else "failed",
                    finish_reason=reply.finish_reason,
                    reply=KeptReply(**asdict(reply)),
                    hash=key,
                    duration_ms=round(1000 * (time.monotonic() - began)),
                )
                _keep(self._options.output, answer)
        self._replies[name, number, stream] = reply
        self._progress(len(self._replies), self._total)


class KeptReply(Own):
    """An answer that is kept; error: why there is none."""

    finish_reason: str | None
    content: str
    calls: list[JsonObject]
    usage: JsonObject | None
    error: str | None
    attempts: int


class KeptAnswer(Growing):
    """A line of --output, which the K2 Vendor Verifier's readers understand."""

    data_index: int
    endpoint: str
    streamed: bool
    request: JsonObject
    status: str
    finish_reason: str | None
    reply: KeptReply
    hash: str
    duration_ms: int


KEPT_ANSWER = OwnFile(form=KeptAnswer, error=EvaluationError, remedy="remove the line, or name another file")


def _keep(path: Path, answer: KeptAnswer) -> None:
    try:
        append_line(path, json.dumps(answer.as_dict(), ensure_ascii=False))
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written: {error.strerror}") from None


def _read_kept(path: Path) -> dict[str, Reply]:
    """Return the answers of an earlier run by request hash; failures are asked again.

    Raises OutputError for a file that cannot be continued, EvaluationError for one of something else.
    """
    check_output(path)
    kept: dict[str, Reply] = {}
    if not path.exists():
        return kept
    content = read_bytes(path).decode(errors="replace")
    if content.strip() and not content.lstrip().startswith(FIRST_KEY[: len(content.lstrip())]):
        raise EvaluationError(
            f"{path} holds something other than answers of moe4 toolcheck; name another file"
        )
    if content and not content.endswith("\n"):
        append_line(path, "")  # ends the line that a killed run tore
    for number, text in enumerate(content.splitlines(), start=1):
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):  # the last line of a run that was killed
            continue
        if isinstance(entry, dict) and entry.get("status") == "success" and "reply" in entry:
            line = KEPT_ANSWER.parse(entry, f"{path}, line {number},")
            kept[line.hash] = Reply(**line.reply.as_dict())
    return kept


def _outcomes(
    requests: Sequence[ToolRequest],
    replies: Replies,
    endpoint: str,
    reference: dict[str, bool],
    stream: bool,
) -> list[Outcome]:
    outcomes = []
    for number, request in enumerate(requests):
        whole = replies[endpoint, number, False]
        streamed = replies[endpoint, number, True] if stream else None
        failed = whole.error or (streamed.error if streamed else None)
        expected = reference.get(request.key)
        if expected is None:
            expected = request.expected_call
        if failed and whole.error is None:
            whole = Reply(error=f"streamed: {failed}")
        findings = None if failed else check(request, whole, streamed)
        outcomes.append(Outcome(name=request.name, expected_call=expected, whole=whole, findings=findings))
    return outcomes


def _refer_to(release: list[Outcome], baseline: list[Outcome]) -> list[Outcome]:
    """Let the baseline's decisions be the reference, where nothing else is."""
    return [
        Outcome(
            name=new.name,
            expected_call=old.findings.called if old.findings else None,
            whole=new.whole,
            findings=new.findings,
        )
        for new, old in zip(release, baseline, strict=True)
    ]


def find_endpoint(base_url: str, model: str | None) -> Endpoint:
    url = normalise_url(base_url)
    names = [entry["id"] for entry in list_models(url)]
    if not names or (model is not None and model not in names):
        wanted, found = model or "at all", ", ".join(names) or "none"
        raise ServeError(f"the server at {url} has no model {wanted}; it has {found}")
    return Endpoint(base_url=url, model=model or names[0], api_key=api_key())


def _greedy(request: ToolRequest) -> ToolRequest:
    """Return the request with greedy decoding, so that two answers to it can be held against each other."""
    body = {key: value for key, value in request.body.items() if key not in SAMPLING}
    return ToolRequest(
        where=request.where,
        name=request.name,
        body={**body, "temperature": 0.0, "seed": 0},
        expected_call=request.expected_call,
        expected_calls=request.expected_calls,
        truncated=request.truncated,
    )


def _request_hash(endpoint: Endpoint, request: ToolRequest, stream: bool) -> str:
    asked = [endpoint.identity or endpoint.base_url, endpoint.model, request.body, stream]
    return hashlib.sha256(
        json.dumps(asked, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()
