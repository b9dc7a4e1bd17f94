"""What is checked of one answer. Each check gives True, False, or None where it does not apply."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from moe4.evaluate.toolcheck.client import Reply
from moe4.evaluate.toolcheck.requests import Call, ToolRequest
from moe4.strict_json import JsonObject

# Special tokens of Kimi's chat form; none may reach a client as text.
MARKER = re.compile(r"<\|(?:tool_calls?_\w+|im_\w+|media_\w+)\|>|\[(?:EOS|BOS|EOT)\]")
CALL_ID = re.compile(r"functions\.(?P<name>.+):(?P<index>[0-9]+)", re.DOTALL)
CUT = "length"  # the finish reason of an answer that `max_tokens` ended
NO_ARGUMENTS = ("", "{}", "null")
USAGE_KEYS = ("prompt_tokens", "completion_tokens", "total_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What was found of one request; None: does not apply.

    called: the finish reason is tool_calls, which is how the K2 Vendor Verifier tells a decision to call.
    truncated_safe: an answer that `max_tokens` is meant to end says `length`, and no client would execute a
    call of it; one that says so by itself names no tool that does not exist.
    empty_arguments: a call that came without arguments has `{}`, whole and streamed.
    """

    called: bool
    schema: bool | None
    calls_exact: bool | None
    finish_consistent: bool
    id_form: bool | None
    id_counts: bool | None
    no_markers: bool
    usage: bool
    stream_equal: bool | None
    truncated_safe: bool | None
    empty_arguments: bool | None
    notes: tuple[str, ...]


def check(request: ToolRequest, whole: Reply, streamed: Reply | None) -> Findings:
    """Check the answer that came whole, and that the streamed one says the same."""
    notes: list[str] = []
    called = whole.finish_reason == "tool_calls"
    replies = [reply for reply in (whole, streamed) if reply is not None and reply.error is None]
    schema = None
    if called:
        faults = [_schema_fault(request, call) for call in whole.calls] or ["no call in the answer"]
        notes += [fault for fault in faults if fault]
        schema = not any(faults)
    equal = None
    if streamed is not None and streamed.error is None:
        difference = _difference(whole, streamed)
        equal = difference is None
        if difference:
            notes.append(f"stream: {difference}")
    cut = [reply for reply in replies if request.truncated or reply.finish_reason == CUT]
    cut_faults = [_cut_fault(request, reply) for reply in cut]
    notes += [fault for fault in dict.fromkeys(cut_faults) if fault]
    empty = _empty_arguments([reply for reply in replies if reply not in cut])
    if empty is False:
        notes.append("a call without arguments has something else than {}")
    leaks = [leak for reply in replies for leak in _leaks(reply)]
    notes += [f"marker {leak} in the text" for leak in dict.fromkeys(leaks)]
    return Findings(
        called=called,
        schema=schema,
        calls_exact=_calls_exact(request.expected_calls, whole.calls),
        finish_consistent=all(_finish_fits(reply) for reply in replies if reply not in cut),
        id_form=_id_form(whole.calls) if whole.calls else None,
        id_counts=_id_counts(request, whole.calls) if whole.calls else None,
        no_markers=not leaks,
        usage=all(_has_usage(reply) for reply in replies),
        stream_equal=equal,
        truncated_safe=not any(cut_faults) if cut else None,
        empty_arguments=empty,
        notes=tuple(notes),
    )


def _finish_fits(reply: Reply) -> bool:
    return (reply.finish_reason == "tool_calls") == bool(reply.calls)


def _cut_fault(request: ToolRequest, reply: Reply) -> str | None:
    """Return what a client would take for a whole answer in one that `max_tokens` ended; None if nothing.

    Where the request does not say that the cut is inside the first call, calls before it may be whole.
    """
    if not request.truncated:
        invented = next((call["name"] for call in reply.calls if call["name"] not in request.tools), None)
        return None if invented is None else f"cut off, and it calls {invented!r}, which is no tool"
    used = (reply.usage or {}).get("completion_tokens")
    if reply.finish_reason == "stop" and isinstance(used, int) and used < request.body.get("max_tokens", 0):
        return None  # the model had less to say
    if reply.finish_reason != CUT:
        return f"cut off, and finish_reason is {reply.finish_reason}"
    for call in reply.calls:
        try:
            parse_arguments(call["arguments"])
        except ValueError:
            continue
        return f"cut off, and a call of {call['name']!r} could be executed"
    return None


def _empty_arguments(replies: Sequence[Reply]) -> bool | None:
    """Say whether calls that came without arguments have `{}`; None where none came.

    Arguments that a model invents for a tool without any are another measure's matter.
    """
    texts = [call["arguments"] for reply in replies for call in reply.calls]
    empty = [text for text in texts if text in (None, {}) or str(text).strip() in NO_ARGUMENTS]
    return all(isinstance(text, str) and text.strip() == "{}" for text in empty) if empty else None


def _schema_fault(request: ToolRequest, call: JsonObject) -> str | None:
    """Return what is wrong with a call's name or arguments."""
    function = request.tools.get(call["name"])
    if function is None:
        return f"no tool is called {call['name']!r}"
    try:
        arguments = parse_arguments(call["arguments"])
    except ValueError as error:
        return f"the arguments of {call['name']} are not JSON: {error}"
    try:
        schema = function.get("parameters") or {"type": "object"}
        kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        kind(schema, registry=Registry()).validate(arguments)  # an empty registry fetches nothing
    except ValidationError as error:
        return f"the arguments of {call['name']}: {error.message[:200]}"
    except (SchemaError, Unresolvable) as error:
        return f"the request's schema of {call['name']} cannot be used: {str(error)[:200]}"
    return None


def parse_arguments(arguments: Any) -> Any:
    """Return a call's arguments, which most servers give as text. Raises ValueError."""
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def _calls_exact(expected: Sequence[Call] | None, calls: Sequence[JsonObject]) -> bool | None:
    """Say whether names and arguments of all calls are the expected ones, in order."""
    if expected is None:
        return None
    try:
        found = [{"name": call["name"], "arguments": parse_arguments(call["arguments"])} for call in calls]
    except ValueError:
        return False
    return found == [{"name": call["name"], "arguments": call["arguments"]} for call in expected]


def same_calls(first: Reply, second: Reply) -> bool:
    """Say whether two answers call the same tools with the same arguments; broken ones by their text."""
    if len(first.calls) != len(second.calls):
        return False
    for one, other in zip(first.calls, second.calls, strict=True):
        if one["name"] != other["name"]:
            return False
        try:
            if parse_arguments(one["arguments"]) != parse_arguments(other["arguments"]):
                return False
        except ValueError:
            if one["arguments"] != other["arguments"]:
                return False
    return True


def _difference(whole: Reply, streamed: Reply) -> str | None:
    """Return where two ways of asking got different answers. Ids that a server draws at random may differ."""
    if whole.finish_reason != streamed.finish_reason:
        return f"finish_reason {streamed.finish_reason}, not {whole.finish_reason}"
    if [call["name"] for call in whole.calls] != [call["name"] for call in streamed.calls]:
        return "other tools are called"
    if not same_calls(whole, streamed):
        return "the arguments differ"
    if _id_form(whole.calls) and [call["id"] for call in whole.calls] != [c["id"] for c in streamed.calls]:
        return "the ids differ"
    return None if whole.content.strip() == streamed.content.strip() else "the text differs"


def _id_form(calls: Sequence[JsonObject]) -> bool:
    matches = [CALL_ID.fullmatch(str(call["id"])) for call in calls]
    return all(
        match is not None and match["name"] == call["name"]
        for match, call in zip(matches, calls, strict=True)
    )


def _id_counts(request: ToolRequest, calls: Sequence[JsonObject]) -> bool:
    """Say whether the numbers in the ids go on counting the conversation's calls."""
    first = request.num_earlier_calls
    wanted = [f"functions.{call['name']}:{first + place}" for place, call in enumerate(calls)]
    return [call["id"] for call in calls] == wanted


def _leaks(reply: Reply) -> list[str]:
    texts = [reply.content, *(f"{call['name']} {call['arguments']}" for call in reply.calls)]
    return [found for text in texts for found in MARKER.findall(text)]


def _has_usage(reply: Reply) -> bool:
    usage = reply.usage or {}
    counts = [usage.get(key) for key in USAGE_KEYS]
    return all(isinstance(count, int) and count > 0 for count in counts) and usage["total_tokens"] == (
        usage["prompt_tokens"] + usage["completion_tokens"]
    )
