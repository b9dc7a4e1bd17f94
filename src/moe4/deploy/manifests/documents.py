"""YAML with its reasons: plain Python values with notes become documents with comments beside the values."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

from moe4.errors import DeployError
from moe4.escape import comment, visible

# What some reader of YAML 1.1 or 1.2 takes for a number, a time, a date, a switch or nothing.
_READ_OTHERWISE = re.compile(
    r"[-+.]?\d[\da-fobx_:.+\- TZ]*|[-+]?\.(inf|nan)|true|false|null|yes|no|on|off|y|n|~|=|<<|", re.I
)
_SCRIPT = re.compile(r"[!-~][ -~]*\n([ -~]*\n)*")

Manifest = dict[str, Any]
"""A Kubernetes object, a compose file or a part of one, as plain values with notes."""
DOUBLED = "_moe4_doubled_keys"
MAX_DEPTH = 64
MAX_VALUES = 1_000_000  # of a document


@dataclass(frozen=True, slots=True)
class Noted:
    """A value and why it is what it is."""

    value: Any
    note: str


def render(documents: Sequence[Manifest], head: Sequence[str]) -> str:
    """Return the documents as YAML, each note as a comment beside its value, `head` as comments above."""
    writer = YAML()
    writer.indent(mapping=2, sequence=4, offset=2)
    writer.width = 4096
    writer.allow_unicode = False  # what is not ASCII is spelled out, so that nothing in it is hidden
    stream = io.StringIO()
    for number, document in enumerate(documents):
        stream.write("---\n" if number else "".join(f"{comment(line)}\n" for line in head))
        writer.dump(_convert(document), stream)
    return stream.getvalue()


def plain(value: Any) -> Any:
    """Return the value without its notes."""
    if isinstance(value, Noted):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def map_text(value: Any, change: Callable[[str], str]) -> Any:
    """Return the value with every text in it changed, but for keys and notes."""
    if isinstance(value, Noted):
        return Noted(map_text(value.value, change), value.note)
    if isinstance(value, dict):
        return {key: map_text(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_text(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


class _BoundedDepth(Composer):
    """Refuses nesting that no manifest has: the reader takes time by its square, and ends in recursion."""

    num_open = 0  # collections; `depth` is the name of newer readers' own count

    def compose_sequence_node(self, anchor: Any) -> Any:
        with self._one_deeper():
            return super().compose_sequence_node(anchor)

    def compose_mapping_node(self, anchor: Any) -> Any:
        with self._one_deeper():
            return super().compose_mapping_node(anchor)

    @contextmanager
    def _one_deeper(self) -> Iterator[None]:
        self.num_open += 1
        if self.num_open > MAX_DEPTH:
            line = self.parser.peek_event().start_mark.line + 1
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels, line {line}")
        yield
        self.num_open -= 1


class _LastKeyWins(RoundTripConstructor):
    """Reads a key that stands twice as kubectl does: the last value counts. `doubled_keys` tells which."""

    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
        if key in mapping:
            mark = key_node.start_mark
            doubled = {**getattr(mapping, DOUBLED, {}), key: (mark.line + 1, mark.column + 1)}
            setattr(mapping, DOUBLED, doubled)
        return True


def doubled_keys(mapping: Any) -> dict[Any, tuple[int, int]]:
    """Return the keys that stand twice in a parsed mapping, with line and column of the last."""
    found: dict[Any, tuple[int, int]] = getattr(mapping, DOUBLED, {})
    return found


def parse(text: str, where: str) -> list[Any]:
    """Parse every document of a YAML text, with the places of its values. Raises DeployError."""
    reader = YAML()
    reader.preserve_quotes = True
    reader.Composer, reader.Constructor = _BoundedDepth, _LastKeyWins
    try:
        documents = [document for document in reader.load_all(text) if document is not None]
        for document in documents:
            _check_aliases(document)
        return documents
    except Exception as error:  # ruamel has several, and the text may be anything
        reason = " ".join(str(error).split())
        raise DeployError(f"{where} is not YAML that can be read: {reason}") from None


def _check_aliases(document: Any) -> None:
    """Refuse aliases that repeat values without end, or so often that whoever walks them takes minutes."""
    known: dict[int, tuple[int, int]] = {}
    """By identity: how many values a mapping or list stands for, and how deeply they are nested."""

    def measure(node: Any, depth: int) -> tuple[int, int]:
        children = list(node.values()) if isinstance(node, dict) else node
        if not isinstance(children, list):
            return 1, 0
        if id(node) not in known:
            if depth > MAX_DEPTH:
                raise ValueError(f"aliases nest it deeper than {MAX_DEPTH} levels")
            inner = [measure(child, depth + 1) for child in children]
            known[id(node)] = (
                1 + sum(size for size, _ in inner),
                1 + max((high for _, high in inner), default=0),
            )
        return known[id(node)]

    size, height = measure(document, 1)
    if height > MAX_DEPTH:
        raise ValueError(f"aliases nest it deeper than {MAX_DEPTH} levels")
    if size > MAX_VALUES:
        raise ValueError(
            f"it holds {size} values, aliases counted as often as they stand; at most {MAX_VALUES}"
        )


def _convert(value: Any, column: int = 0) -> Any:
    """Return ruamel's form of a value whose keys or dashes stand at `column`."""
    if isinstance(value, Noted):
        return _convert(value.value, column)
    if isinstance(value, dict):
        mapping = CommentedMap()
        for key, item in value.items():
            mapping[key] = _convert(item, column + 2)
            if isinstance(item, Noted):
                _note(mapping, key, item, column)
        return mapping
    if isinstance(value, list | tuple):
        sequence = CommentedSeq()
        for position, item in enumerate(value):
            sequence.append(_convert(item, column + 2))
            if isinstance(item, Noted):
                _note(sequence, position, item, column)
        return sequence
    if isinstance(value, str):
        return _convert_text(value)
    return value


def _convert_text(value: str) -> str:
    """Quote what YAML would read as something else than text."""
    if _SCRIPT.fullmatch(value):
        return LiteralScalarString(value)
    looks_odd = value != value.strip() or value[:1] in "{[&*!|>%@`'\"#-?:,"
    if looks_odd or "\n" in value or _READ_OTHERWISE.fullmatch(value):
        return DoubleQuotedScalarString(value)
    return value


def _note(container: Any, key: Any, item: Noted, column: int) -> None:
    """Put the note at the end of a scalar's line; above a mapping, a list or a text of several lines."""
    inner, note = item.value, visible(item.note)
    if isinstance(inner, dict | list | tuple) or (isinstance(inner, str) and _SCRIPT.fullmatch(inner)):
        container.yaml_set_comment_before_after_key(key, before=note, indent=column)
    else:
        container.yaml_add_eol_comment(note, key, column=0)
