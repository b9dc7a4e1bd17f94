"""What Kimi's tokenizer does, read from the Python code that its checkpoints bring: read, never run.

Kimi-K2 and its siblings publish `tiktoken.model`, a vocabulary of byte strings by rank, and a class in
tokenization_kimi.py with the pattern by which text is split before it is merged. The same class name with
another pattern, or with code that changes the text, is another tokenizer: then there is no `KimiCode`.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe4.errors import CheckpointError
from moe4.files.regular import read_text
from moe4.strict_json import JsonObject

CLASS = "tokenization_kimi.TikTokenTokenizer"
VOCABULARY_NAME = "tiktoken.model"
NUM_RESERVED = 256

_LETTERS = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = (rf"[\p{{{kind}}}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for kind in (r"Lu}\p{Lt", "Ll"))
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        f"{_LETTERS}{_UPPER}*{_LOWER}+{_SUFFIX}",
        f"{_LETTERS}{_UPPER}+{_LOWER}*{_SUFFIX}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How Kimi's tokenizers split text: runs of Han characters, words by case, numbers of up to three digits."""

# What the methods that make tokens of text may call; anything else might change the text.
ENCODING_METHODS = (
    "encode",
    "tokenize",
    "_tokenize",
    "pre_tokenizer_process",
    "prepare_for_tokenization",
    "_split_whitespaces_or_nonwhitespaces",
    "_convert_token_to_id",
    "__call__",
    "_encode_plus",
)
COLLECTING = "append cast chr extend get isinstance isspace len ord range super type debug info warning"
HARMLESS_CALLS = frozenset((*COLLECTING.split(), *ENCODING_METHODS))
SORTING, TYPESCRIPT = "deep_sort_dict", "encode_tools_to_typescript_style"
TYPESCRIPT_VARIABLE = "tools_ts_str"
TEMPLATE_ARGUMENTS = frozenset(("self", "conversation", "tools", "tokenize", "add_generation_prompt"))


@dataclass(frozen=True, kw_only=True, slots=True)
class KimiCode:
    """What the code adds to the vocabulary and the chat template."""

    num_special: int = NUM_RESERVED + 2
    """Ids behind the vocabulary that special tokens take, named or reserved."""
    sorts_tools: bool = True
    """Whether tools go to the template with their keys in order."""
    template_values: JsonObject = field(default_factory=dict)
    """What the template is given by name where a caller says nothing."""


def read_kimi_code(folder: Path, chat_template: str) -> KimiCode:
    """Return what a checkpoint's tokenization_kimi.py does; where there is none, what Kimi-K2's does.

    Raises CheckpointError with the reason why the code has to run for the same tokens.
    """
    module, name = CLASS.split(".")
    path = folder / f"{module}.py"
    if not path.exists():
        return KimiCode()
    try:
        tree = ast.parse(read_text(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CheckpointError(f"{path.name} cannot be read as Python") from None
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    if len(found) != 1:
        raise CheckpointError(f"{path.name} has no class {name}")
    methods = {node.name: node for node in found[0].body if isinstance(node, ast.FunctionDef)}
    _check_pattern(found[0], path.name)
    for name in ENCODING_METHODS:
        if name in methods and _may_change_text(methods[name]):
            raise CheckpointError(f"{path.name}: its method {name} may change the text")
    template = methods.get("apply_chat_template")
    if template is None:
        return KimiCode(num_special=_num_special(methods), sorts_tools=False)
    if TYPESCRIPT in _called(template) and TYPESCRIPT_VARIABLE in chat_template:
        raise CheckpointError(f"{path.name}: the chat template needs its {TYPESCRIPT}")
    return KimiCode(
        num_special=_num_special(methods),
        sorts_tools=SORTING in _called(template),
        template_values=dict(_defaults(template)),
    )


def _check_pattern(node: ast.ClassDef, file_name: str) -> None:
    """Raise CheckpointError unless every pattern that the class splits text by is Kimi's."""
    values = [keyword.value for call in _calls(node) for keyword in call.keywords if keyword.arg == "pat_str"]
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else ()
        if any(isinstance(target, ast.Name) and target.id == "pat_str" for target in targets):
            values.append(statement.value)  # type: ignore[attr-defined]
    patterns = {_literal(value) for value in values if not _is_own_pattern(value)}
    if patterns != {PATTERN}:
        raise CheckpointError(f"{file_name} splits text by another pattern than Kimi's")


def _may_change_text(method: ast.FunctionDef) -> bool:
    """Say whether a method on the way from text to ids does more than cut, encode and collect."""
    if _called(method) - HARMLESS_CALLS:
        return True
    if method.name == "pre_tokenizer_process":
        returned = [node.value for node in ast.walk(method) if isinstance(node, ast.Return)]
        return [ast.unparse(value) for value in returned if value] != [f"[{method.args.args[-1].arg}]"]
    sums = [node for node in ast.walk(method) if isinstance(node, ast.BinOp)]
    return any(
        isinstance(part, ast.Constant) and isinstance(part.value, str)
        for node in sums
        for part in ast.walk(node)
    )


def _is_own_pattern(node: ast.expr) -> bool:
    """Say whether an expression is the class's own `pat_str`."""
    return isinstance(node, ast.Attribute) and node.attr == "pat_str"


def _literal(node: ast.expr) -> str | None:
    """Return the text of a literal, or of literals that are joined by one; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or len(node.args) != 1:
        return None
    between, pieces = _literal(node.func.value), node.args[0]
    if node.func.attr != "join" or between is None or not isinstance(pieces, ast.List | ast.Tuple):
        return None
    texts = [_literal(piece) for piece in pieces.elts]
    return None if None in texts else between.join(text for text in texts if text is not None)


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    return (part for part in ast.walk(node) if isinstance(part, ast.Call))


def _called(node: ast.AST) -> set[str]:
    """Return the last names of what is called anywhere in a piece of code."""
    functions = [call.func for call in _calls(node)]
    return {
        function.attr
        if isinstance(function, ast.Attribute)
        else function.id
        if isinstance(function, ast.Name)
        else "something without a name"
        for function in functions
    }


def _num_special(methods: dict[str, ast.FunctionDef]) -> int:
    """Return how many ids are special: some versions of the code take two more than the others."""
    nodes = ast.walk(methods["__init__"]) if "__init__" in methods else ()
    extra = any(
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Add)
        and isinstance(node.right, ast.Constant)
        and node.right.value == 2
        for node in nodes
    )
    return NUM_RESERVED + (2 if extra else 0)


def _defaults(function: ast.FunctionDef) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the arguments that a template is given besides those every template is."""
    arguments, given = function.args.args, function.args.defaults
    pairs = [
        *zip(arguments[len(arguments) - len(given) :], given, strict=True),
        *zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True),
    ]
    for argument, value in pairs:
        if argument.arg not in TEMPLATE_ARGUMENTS and isinstance(value, ast.Constant):
            yield argument.arg, value.value
