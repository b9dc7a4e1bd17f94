"""Lines of calibration data, as data sets and logs have them, brought to the form chat templates take.

    {"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}    tools may be left out
    {"text": "..."}

Other columns are passed over and null counts as absent. Messages may be in the form of OpenAI's API, where
arguments of calls are JSON in a string and content is null or a list of parts: a server parses them before it
renders, and so does this.
"""

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from moe4.errors import CalibrationError
from moe4.schema import Foreign, Only, decode, parse, show

Document = dict[str, Any]


class _Part(Foreign):
    """A part of a message's content."""

    type: Annotated[str, Only(("text",), "a text model is calibrated on text")]
    text: str


def _to_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if content is not None and not isinstance(content, list):
        raise PydanticCustomError(
            "only", "must be a string, a list of parts or null, found {found}", {"found": show(content)}
        )
    return content


def _to_arguments(arguments: Any) -> Any:
    """Return a call's arguments as an object; a server takes none for an empty one."""
    try:
        found = json.loads(arguments) if isinstance(arguments, str) and arguments else arguments or {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PydanticCustomError(
            "only", "must be an object, or one as JSON in a string, found {found}", {"found": show(arguments)}
        )
    return found


class _Function(Foreign):
    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1)]
    arguments: Annotated[dict[str, Any], BeforeValidator(_to_arguments)] = Field(default_factory=dict)


class _ToolCall(Foreign):
    type: Annotated[str, Only(("function",), "templates know no other calls")] = "function"
    function: _Function


class _Message(Foreign):
    role: Annotated[str, Field(min_length=1)]
    content: Annotated[list[_Part] | None, BeforeValidator(_to_parts)] = None
    tool_calls: list[_ToolCall] | None = None


class _Line(Foreign):
    text: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[list[_Message], Field(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None


def parse_line(line: bytes, where: str) -> Document:
    """Return a line as a document for `tokenize`. Raises CalibrationError with `where` and the field."""
    data = decode(line, where, CalibrationError)
    given = data if isinstance(data, dict) else {}
    if (given.get("text") is None) == (given.get("messages") is None):
        raise CalibrationError(f'{where}: expected an object with either "messages" or "text"')
    parsed = parse(_Line, data, where, CalibrationError)
    if parsed.messages is None:
        return {"text": parsed.text}
    messages = [_to_message(raw, read) for raw, read in zip(data["messages"], parsed.messages, strict=True)]
    return {"messages": messages, **({"tools": data["tools"]} if parsed.tools is not None else {})}


def _to_message(raw: dict[str, Any], read: _Message) -> dict[str, Any]:
    """Return a message as a server hands it to the template: what else it says stays as it is."""
    message = {key: value for key, value in raw.items() if key != "tool_calls"}
    texts = [part.text for part in read.content or ()]
    message["content"] = list(raw["content"]) if len(texts) > 1 else "".join(texts)
    if read.tool_calls:
        message["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": parsed.function.arguments}}
            for call, parsed in zip(raw["tool_calls"], read.tool_calls, strict=True)
        ]
    return message


def join_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose parts are joined by newlines, as vLLM does for a template that takes strings."""
    return [
        {**message, "content": "\n".join(part["text"] for part in message["content"])}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]
