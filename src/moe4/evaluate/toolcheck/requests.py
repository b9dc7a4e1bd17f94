"""The requests: one chat-completion body a line, as the K2 Vendor Verifier has them, with what is expected.

    {"messages": [...], "tools": [...], "temperature": 0.6, ...}

A body may also hold `expected`, which is not sent: {"calls": [{"name": ..., "arguments": {...}}]}, an empty
list where no call is wanted, {"called": true} where the arguments are free, or {"truncated": true} where
`max_tokens` ends the answer inside a call. `name` says what a request is
about. A message of the role `_input` is the verifier's way of writing a system message.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from moe4 import reference
from moe4.errors import CheckpointError, EvaluationError
from moe4.evaluate.built_in import HARD_CASES
from moe4.files.regular import read_lines, read_text
from moe4.schema import Foreign, decode, parse
from moe4.strict_json import JsonObject

NOT_SENT = ("expected", "name", "stream", "stream_options", "model")

Call = JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolRequest:
    """One request. `body` is what is sent, without model and stream.

    expected_call: whether a tool should be called; expected_calls: which, in order. None: not known.
    truncated: `max_tokens` ends the answer inside a call.
    """

    where: str
    name: str
    body: JsonObject
    expected_call: bool | None
    expected_calls: tuple[Call, ...] | None
    truncated: bool = False

    @property
    def tools(self) -> dict[str, JsonObject]:
        """The declared functions by name."""
        return {tool["function"]["name"]: tool["function"] for tool in self.body.get("tools") or []}

    @property
    def num_earlier_calls(self) -> int:
        """How many tool calls the conversation holds already."""
        return sum(len(message.get("tool_calls") or []) for message in self.body["messages"])

    @property
    def key(self) -> str:
        """SHA-256 of what is asked: messages and tools, however they are sampled."""
        asked = {"messages": self.body["messages"], "tools": self.body.get("tools")}
        return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def request_files(asked: Sequence[Path]) -> list[Path]:
    """Return the files to read: moe4's hard cases if none is given, k2-tiny's turns too for `reference`."""
    files: list[Path] = []
    for path in asked:
        if reference.is_asked_for(path):
            files.append(reference.data_folder() / reference.TOOL_TURNS)
        else:
            files.append(path)
    if all(map(reference.is_asked_for, asked)):
        files.append(HARD_CASES)
    return files


def read_requests(path: Path, limit: int | None = None) -> list[ToolRequest]:
    """Read a JSONL file of request bodies. Raises EvaluationError with the file and line of a bad one."""
    requests: list[ToolRequest] = []
    try:
        for number, line in enumerate(read_lines(path), start=1):
            if limit is not None and len(requests) >= limit:
                break
            if line.strip():
                where = f"{path}:{number}"
                requests.append(_from_body(_parse_object(line, where), where))
    except CheckpointError as error:
        raise EvaluationError(f"requests {error}") from None
    if not requests:
        raise EvaluationError(f"requests {path}: it holds no requests")
    return requests


def reference_decisions(path: Path) -> dict[str, bool]:
    """Return, by request key, whether a results file of another run decided to call a tool.

    Reads this command's own --output and the K2 Vendor Verifier's results.jsonl. Raises EvaluationError.
    """
    decisions: dict[str, bool] = {}
    for where, entry in _read_objects(path):
        if entry.get("status", "success") != "success":
            continue
        answered = parse(_Answered, entry, where, EvaluationError)
        request = _from_body(answered.request, where)
        decisions.setdefault(request.key, answered.finish_reason == "tool_calls")
    return decisions


class _Function(Foreign):
    name: Annotated[str, Field(min_length=1)]
    parameters: JsonObject | None = None


class _Tool(Foreign):
    function: _Function


class _Message(Foreign):
    role: Annotated[str, Field(min_length=1)]
    tool_calls: list[JsonObject] | None = None


class _Call(Foreign):
    name: str
    arguments: JsonObject


class _Expected(Foreign):
    calls: list[_Call] | None = None
    called: bool | None = None
    truncated: bool = False
    kind: str | None = None

    def faults(self) -> Iterator[str]:
        """Yield that nothing is expected."""
        if self.calls is None and self.called is None and not self.truncated:
            forms = '{"calls": [{"name": ..., "arguments": {...}}]}, {"called": true} or {"truncated": true}'
            yield f"must be {forms}"


class _Request(Foreign):
    messages: Annotated[list[_Message], Field(min_length=1)]
    tools: list[_Tool] | None = None
    expected: _Expected | None = None
    name: str | None = None


class _Answered(Foreign):
    """A line of a results file."""

    request: JsonObject
    finish_reason: str | None


def _read_objects(path: Path) -> Iterator[tuple[str, JsonObject]]:
    try:
        lines = read_text(path).splitlines()
    except CheckpointError as error:
        raise EvaluationError(str(error)) from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path}:{number}", _parse_object(line, f"{path}:{number}")


def _parse_object(line: str | bytes, where: str) -> JsonObject:
    data = decode(line, where, EvaluationError)
    if not isinstance(data, dict):
        raise EvaluationError(f"{where}: expected an object, found {line.strip()[:40]!r}")
    return data


def _from_body(data: JsonObject, where: str) -> ToolRequest:
    read = parse(_Request, data, where, EvaluationError)
    called, calls, truncated = None, None, False
    if read.expected is not None:
        called, truncated = read.expected.called, read.expected.truncated
        if read.expected.calls is not None:
            calls = tuple(data["expected"]["calls"])
            called = bool(calls)
    body = {key: value for key, value in data.items() if key not in NOT_SENT}
    body["messages"] = [
        {**message, "role": "system"} if message["role"] == "_input" else message
        for message in data["messages"]
    ]
    name = read.name or (read.expected and read.expected.kind) or "request"
    return ToolRequest(
        where=where,
        name=name,
        body=body,
        expected_call=called,
        expected_calls=calls,
        truncated=truncated,
    )
