"""The mutants of a Python file: one small change of its code each, at a place that a test should watch."""

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OPERATORS = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "//",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "//",
    ast.Pow: "*",
    ast.LShift: ">>",
    ast.RShift: "<<",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.MatMult: "+",
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """One change: the bytes from `start` to `end` of a file become `text`.

    lines: of the change and of the statement around it; None where that runs when the file is imported.
    """

    file: str
    start: int
    end: int
    text: str
    line: int
    lines: tuple[int, ...] | None

    def apply(self, source: bytes) -> bytes:
        """Return the file's mutated content."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def describe(self, source: bytes) -> str:
        """Return what becomes of what, in one line."""
        before = " ".join(source[self.start : self.end].decode().split())
        return f"{self.file}:{self.line}: {before} -> {self.text}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands: the first line of its statement, and whether a function's body is around it."""

    line: int
    in_function: bool


def sample(root: Path, package: Path, count: int, seed: int) -> list[Mutant]:
    """Return `count` of the mutants of a package or a file, every one as likely, in the files' order."""
    found: list[Mutant] = []
    for path in [package] if package.is_file() else sorted(package.rglob("*.py")):
        found += mutants_of(str(path.relative_to(root)), path.read_bytes())
    chosen = random.Random(f"{seed} {package.name}").sample(range(len(found)), min(count, len(found)))
    return [found[number] for number in sorted(chosen)]


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """Return all mutants of a file, in order; each of them compiles."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = set()
    for place, node, text in _changes(ast.parse(source), Place(1, in_function=False)):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        mutant = Mutant(
            file=file,
            line=node.lineno,
            start=starts[node.lineno - 1] + node.col_offset,
            end=starts[node.end_lineno - 1] + node.end_col_offset,
            text=text,
            lines=(node.lineno, place.line) if place.in_function else None,
        )
        compile(mutant.apply(source), file, "exec")
        found.add(mutant)
    return sorted(found, key=lambda mutant: (mutant.start, mutant.end, mutant.text))


def _changes(node: ast.AST, place: Place) -> Iterator[tuple[Place, ast.expr | ast.stmt, str]]:
    """Yield places, nodes and what replaces each.

    Types, decorators, `assert` and the text of messages are left alone.
    """
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        body = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and name == "body"
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Assert | ast.JoinedStr) or not isinstance(child, ast.AST):
                continue
            line = child.lineno if isinstance(child, ast.stmt) else place.line
            there = Place(line, in_function=place.in_function or body)
            for changed, text in _changes_of(child):
                yield there, changed, text
            yield from _changes(child, there)


def _changes_of(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    match node:
        case ast.BinOp(left=left, op=op, right=right) if not _is_type(node):
            yield node, f"({ast.unparse(left)}) {OPERATORS[type(op)]} ({ast.unparse(right)})".join("()")
        case ast.Compare(left=left, ops=[op, *rest], comparators=values):
            other = ast.Compare(left=left, ops=[COMPARISONS[type(op)](), *rest], comparators=values)
            yield node, f"({ast.unparse(other)})"
        case ast.BoolOp(op=op, values=values):
            word = " or " if isinstance(op, ast.And) else " and "
            yield node, word.join(f"({ast.unparse(value)})" for value in values).join("()")
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield node, f"({ast.unparse(operand)})"
        case ast.Constant(value=bool() as value):
            yield node, str(not value)
        case ast.Constant(value=int() | float() as value):
            yield node, repr(value + 1 if isinstance(value, int) else 2 * value + 1)
        case ast.If() | ast.While() | ast.IfExp():
            yield node.test, "(False)"
            if not isinstance(node, ast.While):
                yield node.test, "(True)"
        case ast.Call(func=ast.Name(id=name) as function) if name in NAMES:
            yield function, NAMES[name]
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise():
            yield node, "pass"
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield node, "return None"
        case ast.Break():
            yield node, "continue"
        case ast.Continue():
            yield node, "break"


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_type(node: ast.BinOp) -> bool:
    """Say whether `a | b` is a union of types that is written outside an annotation."""
    return isinstance(node.op, ast.BitOr) and (_is_none(node.right) or isinstance(node.right, ast.BinOp))
