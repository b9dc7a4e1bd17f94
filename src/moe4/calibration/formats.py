"""Rows of calibration data, as data sets and logs have them, brought to one form: a document.

    messages        [{"role": ..., "content": ...}, ...], as OpenAI's API has them; `tools` beside them
    conversations   [{"from": "human", "value": ...}, ...], as ShareGPT has them; `system`, `tools` beside
    prompt          and `response`, or others of PROMPTS and RESPONSES; `system`, `tools` beside them
    text            a string that is taken as it is

The first of these that a row has is used. Null counts as absent; other columns are ignored, and named by the
caller. What a server does with messages before it renders them is in chat.py; here arguments of calls become
objects and each message is checked, so that a row that cannot be rendered is refused by its place.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from moe4.errors import CalibrationError
from moe4.escape import visible
from moe4.schema import Foreign, Only, decode, parse, show
from moe4.strict_json import JsonObject

Document = JsonObject

PROMPTS = ("prompt", "instruction", "question", "query", "problem")
RESPONSES = ("response", "completion", "output", "answer", "solution")
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "function_call",
}
"""Roles of messages by what data sets call them; a `function_call` is an assistant's."""
KEPT_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning")
"""What a server hands to the template of a message."""
COLUMNS = frozenset(("messages", "conversations", "text", "tools", "system", "input", *PROMPTS, *RESPONSES))
EXPECTED = 'an object with "messages", "conversations", "text", or a pair such as "prompt" and "response"'


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row as a document: where it was found, what was recognized, what of it is not used."""

    where: str
    document: Document
    form: str
    ignored: frozenset[str] = frozenset()


class _Part(Foreign):
    """A part of a message's content."""

    type: Annotated[str, Only(("text",), "a text model is calibrated on text")]
    text: str


def _fault(expected: str, found: Any) -> PydanticCustomError:
    return PydanticCustomError("only", f"must be {expected}, found {{found}}", {"found": show(found)})


def _to_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if content is not None and not isinstance(content, list):
        raise _fault("a string, a list of parts or null", content)
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in content or ()]


def _parsed(value: Any, kind: type, expected: str) -> Any:
    """Return a value that may be JSON in a string; an empty string, as null, is an empty `kind`."""
    is_empty = value is None or (isinstance(value, str) and not value.strip())
    try:
        found = kind() if is_empty else json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind):
        raise _fault(expected, value)
    return found


def _to_arguments(arguments: Any) -> Any:
    return _parsed(arguments or None, dict, "an object, or one as JSON in a string")


def _to_list(value: Any) -> Any:
    return _parsed(value, list, "a list, or one as JSON in a string")


def _refuse_call(value: Any) -> Any:
    if value is not None:
        raise PydanticCustomError("only", "is OpenAI's older form, which servers leave out; write tool_calls")
    return value


class _Function(Foreign):
    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1)]
    arguments: Annotated[JsonObject, BeforeValidator(_to_arguments)] = Field(default_factory=dict)


class _ToolCall(Foreign):
    type: Annotated[str, Only(("function",), "templates know no other calls")] = "function"
    function: _Function


class _Message(Foreign):
    role: Annotated[str, Field(min_length=1)]
    content: Annotated[list[_Part], BeforeValidator(_to_parts)] = Field(default_factory=list)
    name: str | None = None
    tool_calls: Annotated[list[_ToolCall], BeforeValidator(_to_list)] = Field(default_factory=list)
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    function_call: Annotated[Any, AfterValidator(_refuse_call)] = None


class _Declared(Foreign):
    """A function that a model may call."""

    name: Annotated[str, Field(min_length=1)]


class _Tool(Foreign):
    type: Annotated[str, Only(("function",), "templates know no other tools")] = "function"
    function: _Declared


class _Chat(Foreign):
    messages: Annotated[list[_Message], Field(min_length=1)]
    tools: list[_Tool] = Field(default_factory=list)


class _Text(Foreign):
    text: Annotated[str, Field(min_length=1)]


def parse_line(line: str | bytes, where: str) -> Row:
    """Return a row that is JSON. Raises CalibrationError with `where` and the field."""
    return parse_row(decode(line, where, CalibrationError), where)


def parse_row(data: Any, where: str) -> Row:
    """Return a row as a document. Raises CalibrationError with `where` and the field."""
    given = {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else {}
    pair = _find_pair(given)
    if "messages" in given:
        return _chat_row(where, "OpenAI messages", given, ["messages"], given["messages"])
    if "conversations" in given:
        used = ["conversations", "system"]
        return _chat_row(where, "ShareGPT conversations", given, used, given["conversations"])
    if pair is not None:
        used = [*pair, "system", *(["input"] if pair[0] == "instruction" else [])]
        return _chat_row(where, f"{pair[0]} and {pair[1]} columns", given, used, _pair_messages(given, pair))
    if "text" in given:
        text = parse(_Text, given, where, CalibrationError).text
        return Row(where=where, document={"text": text}, form="text", ignored=frozenset(given) - {"text"})
    found = f"the columns {', '.join(map(str, given))}" if given else show(data)
    raise CalibrationError(visible(f"{where}: expected {EXPECTED}, found {found:.200}"))


def _find_pair(given: JsonObject) -> tuple[str, str] | None:
    prompt = next((name for name in PROMPTS if name in given), None)
    response = next((name for name in RESPONSES if name in given), None)
    return (prompt, response) if prompt and response else None


def _pair_messages(given: JsonObject, pair: tuple[str, str]) -> Any:
    """Return a prompt and its response as messages; either may be a list of them already."""
    prompt, response = given[pair[0]], given[pair[1]]
    if isinstance(prompt, str) and pair[0] == "instruction" and given.get("input"):
        prompt = f"{prompt}\n{given['input']}"
    first = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    last = response if isinstance(response, list) else [{"role": "assistant", "content": response}]
    return [*first, *last]


def _chat_row(where: str, form: str, given: JsonObject, used: list[str], messages: Any) -> Row:
    """Return a chat as a row. `used`: the columns that are part of it, beside `tools`."""
    listed = [_renamed(message, where, place) for place, message in enumerate(_entries(messages))]
    system = given.get("system") if "system" in used else None
    if isinstance(system, str) and system and (not listed or _role(listed[0]) != "system"):
        listed = [{"role": "system", "content": system}, *listed]
    tools = [_wrapped(tool) for tool in _listed_tools(given.get("tools"), where)]
    raw = {"messages": listed if isinstance(messages, list) else messages, "tools": tools}
    parsed = parse(_Chat, raw, where, CalibrationError)
    document: Document = {
        "messages": [_to_message(source, read) for source, read in zip(listed, parsed.messages, strict=True)]
    }
    if tools:
        document["tools"] = tools
    ignored = {name for name in given if name not in (*used, "tools")}
    ignored |= {f"{used[0]}[].{key}" for message in listed for key in _unused(message)}
    return Row(where=where, document=document, form=form, ignored=frozenset(ignored))


def _entries(messages: Any) -> list[Any]:
    return messages if isinstance(messages, list) else []


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _listed_tools(tools: Any, where: str) -> list[Any]:
    try:
        return list(_to_list(tools))
    except PydanticCustomError as error:
        raise CalibrationError(f"{where}: tools {error}") from None


def _wrapped(tool: Any) -> Any:
    """Return a tool, or a call of one, as OpenAI's API has it, where it is the function alone."""
    if isinstance(tool, dict) and "function" not in tool and "name" in tool:
        return {
            **{key: tool[key] for key in ("id",) if key in tool},
            "type": "function",
            "function": {key: tool[key] for key in tool if key not in ("type", "id")},
        }
    return tool


def _renamed(message: Any, where: str, place: int) -> Any:
    """Return a message with the names of OpenAI's API; ShareGPT's are `from` and `value`."""
    if not isinstance(message, dict):
        return message
    renamed = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in renamed:
        renamed["tool_calls"] = _wrapped_calls(renamed["tool_calls"])
    if "role" in renamed or "from" not in renamed:
        return renamed
    sender, value = renamed.pop("from"), renamed.pop("value", renamed.pop("content", None))
    role = ROLES.get(sender) if isinstance(sender, str) else None
    if role is None:
        raise CalibrationError(
            f"{where}: message {place + 1} is from {show(sender)}; expected one of {', '.join(ROLES)}"
        )
    if role != "function_call":
        return {"role": role, "content": value, **renamed}
    calls = _parsed_calls(value, where, place)
    return {"role": "assistant", "content": None, **renamed, "tool_calls": calls}


def _wrapped_calls(calls: Any) -> Any:
    """Return calls as OpenAI's API has them, where they are functions alone or JSON in a string."""
    try:
        return [_wrapped(call) for call in _to_list(calls)]
    except PydanticCustomError:
        return calls  # the check of the message names it


def _parsed_calls(value: Any, where: str, place: int) -> list[Any]:
    """Return the calls that ShareGPT writes as JSON: one with `name` and `arguments`, or several."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        found = None
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise CalibrationError(
            f"{where}: message {place + 1} is a function_call and must be JSON with name and arguments, "
            f"found {show(value)}"
        )
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments")}}
        for call in calls
    ]


def _unused(message: Any) -> Iterator[str]:
    if isinstance(message, dict):
        yield from (key for key in message if key not in KEPT_KEYS)


def _to_message(raw: JsonObject, read: _Message) -> JsonObject:
    """Return a message as OpenAI's API has it, with arguments as objects and a single part as a string."""
    message = {key: value for key, value in raw.items() if key in KEPT_KEYS and key != "tool_calls"}
    texts = [part.text for part in read.content]
    message["content"] = (
        [{"type": "text", "text": text} for text in texts] if len(texts) > 1 else "".join(texts)
    )
    if read.tool_calls:
        message["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": parsed.function.arguments}}
            for call, parsed in zip(raw["tool_calls"], read.tool_calls, strict=True)
        ]
    return message
