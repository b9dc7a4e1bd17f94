"""What every command's arguments have in common: an empty text is no value."""

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand


class Command(TyperCommand):
    """A command that refuses `--name ''`: an empty text is neither nothing nor this folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments as typer does, once none is found to be empty."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        parameter: Any  # typer's own kind, which it does not export
        for parameter in self.get_params(ctx):
            if parameter.name in given and "" in _texts(given[parameter.name]):
                message = "it is empty; give a value" + ("" if parameter.required else ", or leave it out")
                raise typer.BadParameter(message, ctx=ctx, param=parameter)
        return super().parse_args(ctx, args)


def _texts(given: Any) -> Iterable[Any]:
    return given if isinstance(given, list | tuple) else (given,)
