"""The requests: one chat-completion body a line, as the K2 Vendor Verifier has them, with what is expected.

    {"messages": [...], "tools": [...], "temperature": 0.6, ...}

A body may also hold `expected`, which is not sent: {"calls": [{"name": ..., "arguments": {...}}]}, an empty
list where no call is wanted, or {"called": true} where the arguments are free. `name` says what a request is
about. A message of the role `_input` is the verifier's way of writing a system message.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe4.errors import EvaluationError

HARD_CASES = Path(__file__).parent / "data" / "hard-cases.jsonl"
REFERENCE_TURNS = "heldout-tools.jsonl"
NOT_SENT = ("expected", "name", "stream", "stream_options", "model")

Call = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolRequest:
    """One request. `body` is what is sent, without model and stream.

    expected_call: whether a tool should be called; expected_calls: which, in order. None: not known.
    """

    where: str
    name: str
    body: dict[str, Any]
    expected_call: bool | None
    expected_calls: tuple[Call, ...] | None

    @property
    def tools(self) -> dict[str, dict[str, Any]]:
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


def own_requests() -> tuple[Path, ...]:
    """Return moe4's requests: the hard cases, and k2-tiny's held-out tool turns where they are installed."""
    spec = importlib.util.find_spec("k2tiny")
    if spec is None or spec.origin is None:
        return (HARD_CASES,)
    turns = Path(spec.origin).resolve().parents[1] / "data" / REFERENCE_TURNS
    return (turns, HARD_CASES) if turns.is_file() else (HARD_CASES,)


def read_requests(path: Path, limit: int | None = None) -> list[ToolRequest]:
    """Read a JSONL file of request bodies. Raises EvaluationError with the file and line of a bad one."""
    requests: list[ToolRequest] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if limit is not None and len(requests) >= limit:
                    break
                if line.strip():
                    requests.append(_parse(line, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"requests {path} cannot be read: {error}") from None
    if not requests:
        raise EvaluationError(f"requests {path}: no request in it")
    return requests


def reference_decisions(path: Path) -> dict[str, bool]:
    """Return, by request key, whether a results file of another run decided to call a tool.

    Reads this command's own --output and the K2 Vendor Verifier's results.jsonl. Raises EvaluationError.
    """
    decisions: dict[str, bool] = {}
    for where, entry in _read_objects(path):
        if entry.get("status", "success") != "success":
            continue
        if not isinstance(entry.get("request"), dict) or "finish_reason" not in entry:
            raise EvaluationError(f'{where}: expected a result with "request" and "finish_reason"')
        request = _from_body(entry["request"], where)
        decisions.setdefault(request.key, entry["finish_reason"] == "tool_calls")
    return decisions


def _read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path}:{number}", _parse_object(line, f"{path}:{number}")


def _parse(line: str, where: str) -> ToolRequest:
    return _from_body(_parse_object(line, where), where)


def _parse_object(line: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise EvaluationError(f"{where}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise EvaluationError(f"{where}: expected an object, found {line.strip()[:40]}")
    return data


def _from_body(data: dict[str, Any], where: str) -> ToolRequest:
    messages, tools = data.get("messages"), data.get("tools")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise EvaluationError(f'{where}: "messages" must be a list of objects that is not empty')
    for tool in tools or []:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise EvaluationError(f'{where}: every tool must be {{"type": "function", "function": {{...}}}}')
    expected = data.get("expected")
    called, calls = _read_expected(expected, where)
    body = {key: value for key, value in data.items() if key not in NOT_SENT}
    body["messages"] = [
        {**message, "role": "system"} if message.get("role") == "_input" else message for message in messages
    ]
    kind = expected.get("kind") if isinstance(expected, dict) else None
    name = str(data.get("name") or kind or "request")
    return ToolRequest(where=where, name=name, body=body, expected_call=called, expected_calls=calls)


def _read_expected(expected: Any, where: str) -> tuple[bool | None, tuple[Call, ...] | None]:
    if expected is None:
        return None, None
    calls = expected.get("calls") if isinstance(expected, dict) else None
    if isinstance(calls, list) and all(
        isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls
    ):
        return bool(calls), tuple(calls)
    if isinstance(expected, dict) and isinstance(expected.get("called"), bool):
        return expected["called"], None
    raise EvaluationError(
        f'{where}: "expected" must be {{"calls": [{{"name": ..., "arguments": ...}}]}} or {{"called": true}}'
    )
