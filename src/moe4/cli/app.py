"""Assemble the commands.

torch, transformers and vllm are imported inside the commands, so that `moe4 --help` answers at once.
"""

import importlib
from typing import Any

import typer

from moe4 import __version__
from moe4.cli.arguments import Command

# Each command's module in moe4.cli, which has a function `command`. The order is that of `moe4 --help`.
COMMANDS = {
    "plan": "making.plan",
    "quantize": "making.quantize",
    "verify": "making.verify",
    "serve": "serving.serve",
    "chat": "serving.chat",
    "eval": "measuring.eval",
    "compare": "measuring.compare",
    "coverage": "measuring.coverage",
    "toolcheck": "measuring.toolcheck",
    "report": "measuring.report",
    "card": "measuring.card",
    "prove": "measuring.prove",
    "fit": "deploying.fit",
    "deploy": "deploying.deploy",
    "lint": "deploying.lint",
    "probe": "making.probe",
    "smoke": "serving.smoke",
    "doctor": "serving.doctor",
}

# What typer raises for wrong arguments; it exports only this class of them, which some are not.
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

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


for _name, _place in COMMANDS.items():
    _module = importlib.import_module(f"moe4.cli.{_place}")
    _settings = getattr(_module, "CONTEXT_SETTINGS", None)
    app.command(_name, cls=Command, context_settings=_settings)(_module.command)
