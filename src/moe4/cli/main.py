"""Assemble the commands and turn errors into one line and an exit code.

torch, transformers and vllm are imported inside the commands, so that `moe4 --help` answers at once.
"""

import importlib
import sys

import typer

from moe4 import __version__
from moe4.errors import Moe4Error

# One module per command in moe4.cli; each has a function `command` that typer registers under this name.
COMMANDS = (
    "plan",
    "quantize",
    "verify",
    "serve",
    "chat",
    "eval",
    "compare",
    "coverage",
    "toolcheck",
    "report",
    "card",
    "prove",
    "fit",
    "deploy",
    "lint",
    "probe",
    "smoke",
    "doctor",
)

app = typer.Typer(
    name="moe4",
    help="Quantize Mixture-of-Experts checkpoints to INT4 (W4A16), check, serve and evaluate them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"moe4 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


for _name in COMMANDS:
    _module = importlib.import_module(f"moe4.cli.{_name}")
    _settings = getattr(_module, "CONTEXT_SETTINGS", None)
    app.command(_name, context_settings=_settings)(_module.command)


def main() -> None:
    """Run the command line. Exit code 0: done; 1: a check failed; 2: bad input; 130: interrupted."""
    try:
        app()
    except Moe4Error as error:
        typer.echo(f"moe4: error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("moe4: interrupted", err=True)
        sys.exit(130)
