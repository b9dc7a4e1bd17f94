"""Parsed documents and where in the file their values stand."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from moe4.deploy.lint.finding import RULES, Finding, Key, Level


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One YAML document of a file, or a command line in one.

    data: ruamel's, which knows lines; of a command line, what was read from it.
    start: where a command line stands, line and column from 1.
    """

    file: Path
    data: Any = None
    start: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """Its kind, or an empty text."""
        return str(mapping(self.data).get("kind", ""))

    @property
    def group(self) -> str:
        """The API group, without the version."""
        return str(mapping(self.data).get("apiVersion", "")).rpartition("/")[0]

    @property
    def version(self) -> str:
        """The API version, without the group."""
        return str(mapping(self.data).get("apiVersion", "")).rpartition("/")[2]

    @property
    def name(self) -> str:
        """The object's name."""
        return str(get(self.data, "metadata", "name") or "")

    def locate(self, path: tuple[Key, ...]) -> tuple[int, int]:
        """Return line and column, from 1, of the value's key, or of the nearest parent that is there."""
        if self.start is not None:
            return self.start
        node: Any = self.data
        line, column = 0, 0
        if hasattr(node, "lc"):
            line, column = node.lc.line or 0, node.lc.col or 0  # what is empty has no place
        for key in path:
            try:
                child = node[key]
                marks: Any = node.lc
                line, column = marks.key(key) if isinstance(node, dict) else marks.item(key)
            except (KeyError, IndexError, TypeError, AttributeError):
                break
            node = child
        return line + 1, column + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A value's place: a document and the path in it."""

    document: Document
    path: tuple[Key, ...] = ()

    def __truediv__(self, key: Key) -> "Place":
        return Place(document=self.document, path=(*self.path, key))

    @property
    def value(self) -> Any:
        """What stands there; None if nothing does."""
        return get(self.document.data, *self.path)

    def writer(self, value: Any) -> Callable[[], None] | None:
        """Return what writes a value here, and the mappings above it that are absent or empty.

        None where something that is no mapping stands above it: that is the user's to mend.
        """
        node = self.document.data
        for key in self.path[:-1]:
            if not isinstance(node, list if isinstance(key, int) else dict):
                return None
            child = get(node, key)
            node = {} if child is None and isinstance(node, dict) else child  # what is absent will be made
        return partial(_write, self.document.data, self.path, value) if isinstance(node, dict) else None

    def find(
        self,
        rule: str,
        why: str,
        fix: str,
        repair: Callable[[], None] | None = None,
        level: Level | None = None,
    ) -> Finding:
        """Return a finding here, of the rule's level if none is given."""
        return self.find_at(self.document.locate(self.path), rule, why, fix, repair, level)

    def find_at(
        self,
        at: tuple[int, int],
        rule: str,
        why: str,
        fix: str,
        repair: Callable[[], None] | None = None,
        level: Level | None = None,
    ) -> Finding:
        """Return a finding at a line and column of its own."""
        line, column = at
        return Finding(
            rule=rule,
            level=level or RULES[rule].level,
            file=self.document.file,
            line=line,
            column=column,
            path=dotted(self.path),
            why=why,
            fix=fix,
            repair=repair,
        )


def _write(node: Any, path: tuple[Key, ...], value: Any) -> None:
    for key in path[:-1]:
        if get(node, key) is None:
            node[key] = CommentedMap()
        node = node[key]
    node[path[-1]] = value


def get(node: Any, *path: Key) -> Any:
    """Return the value at a path, or None."""
    for key in path:
        if isinstance(node, dict):
            node = node.get(key)
        elif isinstance(node, list) and isinstance(key, int) and key < len(node):
            node = node[key]
        else:
            return None
    return node


def entries(node: Any) -> list[Any]:
    """Return a list's items, or nothing."""
    return list(node) if isinstance(node, list) else []


def mapping(node: Any) -> dict[Any, Any]:
    """Return a mapping, or an empty one for anything else."""
    return node if isinstance(node, dict) else {}


def whole(value: Any) -> int | None:
    """Return a whole number from 0, also from its digits; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18:
        return int(value)
    return None


def dotted(path: tuple[Key, ...]) -> str:
    """Return a path as `spec.containers[0].image`."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        elif "." in key or "/" in key:
            text += f'["{key}"]'
        else:
            text += f".{key}" if text else key
    return text
