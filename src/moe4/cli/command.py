"""What all commands share: -h, -q, -v and --log-file; help in groups, with examples."""

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from moe4.arguments import named_as_options
from moe4.cli.messages import logger, messages
from moe4.errors import Moe4Error

HELP_NAMES = {"help_option_names": ["-h", "--help"]}
PLAIN_PANEL = "Options"
MESSAGES_PANEL = "Messages"


def _common(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Print warnings and errors only, and no progress.",
            rich_help_panel=MESSAGES_PANEL,
        ),
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            show_default=False,
            help="Print more; with `serve`, also vLLM's log.",
            rich_help_panel=MESSAGES_PANEL,
        ),
    ] = 0,
    log_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Append all messages to this file, with times.",
            rich_help_panel=MESSAGES_PANEL,
        ),
    ] = None,
) -> None:
    """Declare the options of every command."""


def _common_options() -> list[Any]:
    """Return the options of every command, as typer builds them from a function."""
    app = typer.Typer(add_completion=False)
    app.command()(_common)
    return list(get_command(app).params)


COMMON = _common_options()


class Command(TyperCommand):
    """A command with the common options, which refuses `--name ''`.

    An empty value means neither "not given" nor the current folder. The epilog holds examples, one per line.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.common = [str(parameter.name) for parameter in COMMON]
        self.params += COMMON

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments as typer does, after checking that none is empty."""
        words, kept = self._take_foreign(list(args))
        given, _, _ = self.make_parser(ctx).parse_args(args=list(words))
        parameter: Any  # typer's own kind, which it does not export
        for parameter in self.get_params(ctx):
            if parameter.name in given and "" in _texts(given[parameter.name]):
                message = "it is empty; give a value" + ("" if parameter.required else ", or leave it out")
                raise typer.BadParameter(message, ctx=ctx, param=parameter)
        super().parse_args(ctx, words)
        ctx.args = [kept.get(word, word) for word in ctx.args]
        return list(ctx.args)

    def _take_foreign(self, args: list[str]) -> tuple[list[str], dict[str, str]]:
        """Hide another program's short options of several letters, such as -dpn, from the parser.

        It would read them letter by letter, and find `-h` in `-dph`.
        """
        if not self.context_settings.get("ignore_unknown_options"):
            return args, {}
        own = {name for parameter in self.params for name in parameter.opts}
        kept: dict[str, str] = {}
        words = []
        for word in args:
            name = word.partition("=")[0]
            if len(name) > 2 and name[0] == "-" and name[1].isalpha() and name not in own:
                stand_in = f"--moe4-foreign-{len(kept)}"
                kept[stand_in] = word
                word = stand_in
            words.append(word)
        return words, kept

    def invoke(self, ctx: Any) -> Any:
        """Run the command, with messages as -q, -v and --log-file say."""
        quiet, verbosity, log_file = (ctx.params.pop(name) for name in self.common)
        if quiet and verbosity:
            raise typer.BadParameter("--quiet and --verbose contradict each other", ctx=ctx)
        with named_as_options(), messages(quiet=quiet, verbosity=verbosity, log_file=log_file):
            began = time.monotonic()
            try:
                return super().invoke(ctx)
            except Moe4Error as error:
                logger.debug("error: %s", error)
                raise
            finally:
                logger.debug("moe4 %s: %.1f s", self.name, time.monotonic() - began)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line; typer's versions differ in how they write arguments."""
        pieces = ["[OPTIONS]"]
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                name = (parameter.metavar or parameter.name).removesuffix("...") + "..." * (
                    parameter.nargs != 1
                )
                pieces.append(name if parameter.required else f"[{name}]")
        return pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options in their groups, ungrouped ones first."""
        panels: dict[str, list[tuple[str, str]]] = defaultdict(list)
        panels["Arguments"] = []
        panels[PLAIN_PANEL] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            name = "Arguments" if parameter.param_type_name == "argument" else PLAIN_PANEL
            if "--help" in parameter.opts:
                name = MESSAGES_PANEL
            panels[getattr(parameter, "rich_help_panel", None) or name].append(record)
        panels[MESSAGES_PANEL] = panels.pop(MESSAGES_PANEL)  # the last
        _write(formatter, panels)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples unchanged."""
        _write_examples(formatter, self.epilog)


class Group(TyperGroup):
    """The commands, in groups."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with the first sentence of its help."""
        panels: dict[str, list[tuple[str, str]]] = defaultdict(list)
        width = max(map(len, self.commands))
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            text = command.get_short_help_str(formatter.width - 6 - width)
            panels[command.rich_help_panel or "Commands"].append((name.ljust(width), text))
        _write(formatter, panels)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples unchanged."""
        _write_examples(formatter, self.epilog)


def _write(formatter: Any, panels: dict[str, list[tuple[str, str]]]) -> None:
    for name, records in panels.items():
        if records:
            with formatter.section(name):
                formatter.write_dl(records)


def _write_examples(formatter: Any, lines: str | None) -> None:
    if lines:
        with formatter.section("Examples"):
            for line in lines.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def _texts(given: Any) -> Iterable[Any]:
    return given if isinstance(given, list | tuple) else (given,)
