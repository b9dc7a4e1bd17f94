"""Does a chat template take the content of a message as a list of parts? Told from its text, as vLLM does.

vLLM hands lists to a template that loops over a message's content somewhere: directly, through a macro that
is given the content, or over a variable of the name `content`. To all others it hands one string.
"""

from collections.abc import Iterator
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols

MESSAGES, CONTENT = "messages", "content"


class GenerationBlocks(Extension):
    """The tag that marks what an assistant says, which transformers adds to the language."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 reads it off the class)

    def parse(self, parser: Any) -> Any:
        """Return what is between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def loops_over_content(template: str) -> bool:
    """Say whether vLLM hands lists of parts to a template; it hands none to one that cannot be parsed."""
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols], autoescape=False
    )
    try:
        root = environment.parse(template)
    except (TemplateError, RecursionError):
        return False
    messages = _loop_variables(root, _aliases(root, MESSAGES))
    in_macros: set[int] = set()
    for macro in root.find_all(nodes.Macro):
        given = set(_given_content(root, macro, messages))
        for loop in macro.find_all(nodes.For):
            in_macros.add(id(loop))
            if isinstance(loop.iter, nodes.Name) and loop.iter.name in given:
                return True
    return any(
        any(_is_content_of(loop.iter, name) for name in messages)
        or (id(loop) not in in_macros and isinstance(loop.iter, nodes.Name) and loop.iter.name == CONTENT)
        for loop in root.find_all(nodes.For)
    )


def _aliases(root: nodes.Template, name: str) -> set[str]:
    """Return the names of a variable: its own, and those that it, or a part of it, is assigned to."""
    names, waiting = {name}, [name]
    while waiting:
        known = waiting.pop()
        for assignment in root.find_all(nodes.Assign):
            target = assignment.target
            if isinstance(target, nodes.Name) and _is_variable(assignment.node, known):
                if target.name not in names:
                    waiting.append(target.name)
                names.add(target.name)
    return names


def _loop_variables(root: nodes.Template, names: set[str]) -> set[str]:
    """Return what loops over any of the variables call an entry."""
    return {
        loop.target.name
        for loop in root.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and any(_is_variable(loop.iter, name) for name in names)
    }


def _given_content(root: nodes.Template, macro: nodes.Macro, messages: set[str]) -> Iterator[str]:
    """Yield the parameters of a macro that are given a message's content somewhere."""
    parameters = [argument.name for argument in macro.args]
    for call in root.find_all(nodes.Call):
        if not isinstance(call.node, nodes.Name) or call.node.name != macro.name:
            continue
        given = [*zip(parameters, call.args, strict=False), *((word.key, word.value) for word in call.kwargs)]
        for name, value in given:
            if name in parameters and any(_is_content_of(value, message) for message in messages):
                yield name


def _unwrapped(node: nodes.Node | None) -> nodes.Node | None:
    """Return what filters, tests and slices are applied to."""
    while isinstance(node, nodes.Filter | nodes.Test) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    return node


def _is_variable(node: nodes.Node, name: str) -> bool:
    found = _unwrapped(node)
    return isinstance(found, nodes.Name) and found.name == name and found.ctx == "load"


def _is_content_of(node: nodes.Node, message: str) -> bool:
    """Say whether an expression is `message.content` or `message["content"]`."""
    found = _unwrapped(node)
    if isinstance(found, nodes.Getattr):
        return found.attr == CONTENT and _is_name(found.node, message)
    if isinstance(found, nodes.Getitem):
        is_key = isinstance(found.arg, nodes.Const) and found.arg.value == CONTENT
        return is_key and _is_name(found.node, message)
    return False


def _is_name(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
