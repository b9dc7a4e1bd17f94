"""Read Kimi's tool calls from raw completion text, whole, in pieces or cut off, and write them back.

    text<|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:IDX<|tool_call_argument_begin|>{json}
    <|tool_call_end|> ... <|tool_calls_section_end|>text

`parse_answer` is for `/v1/completions`, logs and evaluation; a call that was cut off or holds broken JSON
comes back with `complete` false. `AnswerStream` gives what a chat server sends, piece by piece; `moe4 serve`
has vLLM use it (`vllm_plugin/tool_parser.py`). No text makes them raise.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from moe4.strict_json import JsonObject

SECTION_BEGIN = "<|tool_calls_section_begin|>"
SECTION_END = "<|tool_calls_section_end|>"
CALL_BEGIN = "<|tool_call_begin|>"
ARGUMENT_BEGIN = "<|tool_call_argument_begin|>"
CALL_END = "<|tool_call_end|>"
TURN_END = "<|im_end|>"

_MARKERS = (SECTION_BEGIN, SECTION_END, CALL_BEGIN, ARGUMENT_BEGIN, CALL_END, TURN_END)
_TOKEN = re.compile("(" + "|".join(map(re.escape, _MARKERS)) + ")")
# `functions.` once, then any name, then the number of the call in the conversation. The last colon counts.
_ID = re.compile(r"(?:functions\.)?(?P<name>.*?)(?::(?P<index>[0-9]{1,9}))?", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """One call as the model wrote it.

    id: the header, `functions.NAME:IDX`; the answer to the call must carry it unchanged.
    name: NAME, which may hold hyphens and dots. index: IDX, or None where there is none.
    arguments: the JSON text, unparsed.
    complete: the id has a name and a number, and the arguments are a JSON object.
    """

    id: str
    name: str
    index: int | None
    arguments: str
    complete: bool

    def parsed_arguments(self) -> JsonObject:
        """Return the arguments as a dictionary. Raises ValueError if the call is not complete."""
        arguments = _json_object(self.arguments)
        if arguments is None:
            raise ValueError(f"the arguments of {self.id!r} are not a JSON object: {self.arguments!r}")
        return arguments


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What an assistant's turn says outside its tool calls, and the calls in order."""

    content: str
    calls: tuple[ToolCall, ...]


def parse_answer(text: str) -> Answer:
    """Split an assistant's raw turn, up to its `<|im_end|>`, into content and tool calls. Never raises.

    Content is the text before, between and after the sections, and text in a section that belongs to no call.
    A call ends at its own end token, at the next call, at a section's beginning or end, or with the text.
    """
    content: list[str] = []
    calls: list[ToolCall] = []
    header, arguments = "", ""
    reader = _Reader()
    for kind, piece in (*reader.feed(text), *reader.finish()):
        if kind == "text":
            content.append(piece)
        elif kind == "begin":
            header, arguments = "", ""
        elif kind == "header":
            header += piece
        elif kind == "arguments":
            arguments += piece
        else:
            calls.append(_call(header, arguments))
    return Answer(content="".join(content), calls=tuple(calls))


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerPiece:
    """What became known of an answer: some of its text, or some of a call.

    call: the call's number in this answer, from 0; None for text. id, name: with the first piece of a call.
    """

    text: str = ""
    call: int | None = None
    id: str | None = None
    name: str | None = None


class AnswerStream:
    """An assistant's turn as it is generated. The pieces of a text add up to the same however it is cut.

    A call is given when its name is whole and its arguments have begun, or are known to be empty (`{}`). So a
    call that is cut off before is not given at all; one that is cut off later has the arguments so far. Text
    of nothing but spaces counts only in an answer without calls.
    """

    def __init__(self, num_earlier_calls: int = 0) -> None:
        """num_earlier_calls: of the conversation, for ids that the model has left without a number."""
        self.num_calls = 0
        self._num_earlier = num_earlier_calls
        self._reader = _Reader()
        self._header, self._has_arguments, self._is_given = "", False, False
        self._space = ""  # of the arguments, until something follows
        self._leading: str | None = ""  # spaces before the first text; None after it

    def feed(self, text: str) -> list[AnswerPiece]:
        """Return what some more text says."""
        return [piece for event in self._reader.feed(text) for piece in self._take(*event)]

    def finish(self) -> list[AnswerPiece]:
        """Return what is known only at the end of the text."""
        found = [piece for event in self._reader.finish() for piece in self._take(*event)]
        if self._leading and not self.num_calls:
            found.append(AnswerPiece(text=self._leading))
        return found

    def _take(self, kind: "_Kind", piece: str) -> Iterator[AnswerPiece]:
        if kind == "text":
            if self._leading is not None:
                piece, self._leading = self._leading + piece, None
                if not piece.strip():
                    piece, self._leading = "", piece
            if piece:
                yield AnswerPiece(text=piece)
        elif kind == "begin":
            self._header, self._has_arguments, self._is_given, self._space = "", False, False, ""
        elif kind == "header":
            self._header += piece
        elif kind == "arguments":
            self._has_arguments = True
            known = (self._space + piece).rstrip()
            self._space = (self._space + piece)[len(known) :]
            yield from self._give(known if self._is_given else known.lstrip())
        elif kind == "end" and not self._is_given and self._has_arguments:
            yield from self._give("{}")

    def _give(self, arguments: str) -> Iterator[AnswerPiece]:
        if not arguments:
            return
        if self._is_given:
            yield AnswerPiece(call=self.num_calls - 1, text=arguments)
            return
        call = _call(self._header, "")
        if not call.name:
            return
        number = self._num_earlier + self.num_calls
        identity = call.id if call.index is not None else f"functions.{call.name}:{number}"
        self._is_given = True
        self.num_calls += 1
        yield AnswerPiece(call=self.num_calls - 1, id=identity, name=call.name, text=arguments)


_Kind = Literal["text", "begin", "header", "arguments", "end", "cut"]


class _Reader:
    """Tells what each part of a turn is, as it comes. What may be the beginning of a marker is held back.

    Events: some text outside calls; a call begins; some of its header; some of its arguments, or none where
    they begin; it ends, at its end token, the next call or a section's beginning or end; the turn ends in it.
    """

    def __init__(self) -> None:
        self._held = ""
        self._where: Literal["text", "header", "arguments"] = "text"
        self._in_section = False
        self._space: str | None = ""  # in a section, which is nothing unless text follows; None after text
        self._is_over = False

    def feed(self, text: str) -> Iterator[tuple[_Kind, str]]:
        *parts, last = _TOKEN.split(self._held + text)
        held = _length_of_beginning(last)
        self._held = last[len(last) - held :]
        for piece in (*parts, last[: len(last) - held]):
            yield from self._marker(piece) if piece in _MARKERS else self._plain(piece)

    def finish(self) -> Iterator[tuple[_Kind, str]]:
        held, self._held = self._held, ""
        yield from self._plain(held)
        if self._where != "text" and not self._is_over:
            yield "cut", ""
        self._is_over = True

    def _plain(self, piece: str) -> Iterator[tuple[_Kind, str]]:
        if self._is_over or not piece:
            return
        if self._where != "text":
            yield self._where, piece
            return
        if self._space is not None:
            piece, self._space = self._space + piece, None
            if self._in_section and not piece.strip():
                piece, self._space = "", piece
        if piece:
            yield "text", piece

    def _marker(self, marker: str) -> Iterator[tuple[_Kind, str]]:
        if self._is_over:
            return
        self._space = ""
        if marker == TURN_END:
            if self._where != "text":
                yield "cut", ""
            self._is_over = True
        elif marker == ARGUMENT_BEGIN:
            if self._where == "header":
                self._where = "arguments"
                yield "arguments", ""
        else:
            if self._where != "text":
                yield "end", ""
            self._where = "header" if marker == CALL_BEGIN else "text"
            if marker == CALL_BEGIN:
                yield "begin", ""
            elif marker != CALL_END:
                self._in_section = marker == SECTION_BEGIN


def _length_of_beginning(text: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a marker."""
    start = text.rfind("<|")
    if start >= 0 and any(marker.startswith(text[start:]) for marker in _MARKERS):
        return len(text) - start
    return int(text.endswith("<"))


def render_calls(calls: Iterable[ToolCall]) -> str:
    """Write calls as one section, in the form the model was trained on; the inverse of `parse_answer`."""
    body = "".join(f"{CALL_BEGIN}{call.id}{ARGUMENT_BEGIN}{call.arguments}{CALL_END}" for call in calls)
    return f"{SECTION_BEGIN}{body}{SECTION_END}" if body else ""


def _call(header: str, arguments: str) -> ToolCall:
    identity = header.strip()
    match = _ID.fullmatch(identity)
    name = match["name"] if match else identity
    index = int(match["index"]) if match and match["index"] else None
    text = arguments.strip()
    complete = bool(name) and index is not None and _json_object(text) is not None
    return ToolCall(id=identity, name=name, index=index, arguments=text, complete=complete)


def _json_object(text: str) -> JsonObject | None:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
