"""Assemble the commands.

Commands import torch, transformers and vllm only when they run, so that `moe4 --help` is fast.
"""

import importlib
from typing import Any

import typer

from moe4 import __version__
from moe4.cli.command import HELP_NAMES, Command, Group

# Each command's module in moe4.cli, which has a function `command`. The order is that of `moe4 --help`.
GROUPS = {
    "Make a release": {
        "plan": "making.plan",
        "quantize": "making.quantize",
        "tune": "making.tune",
        "verify": "making.verify",
        "probe": "making.probe",
    },
    "Serve it": {
        "serve": "serving.serve",
        "chat": "serving.chat",
        "smoke": "serving.smoke",
        "doctor": "serving.doctor",
    },
    "Measure what it cost": {
        "eval": "measuring.eval",
        "compare": "measuring.compare",
        "coverage": "measuring.coverage",
        "toolcheck": "measuring.toolcheck",
        "prove": "measuring.prove",
        "power": "measuring.power",
        "report": "measuring.report",
        "card": "measuring.card",
    },
    "Deploy it": {
        "fit": "deploying.fit",
        "deploy": "deploying.deploy",
        "lint": "deploying.lint",
    },
}
COMMANDS = {name: place for group in GROUPS.values() for name, place in group.items()}

# What typer raises for wrong arguments. It exports only this subclass, so take the base of that.
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="moe4",
    cls=Group,
    help="Quantize Mixture-of-Experts checkpoints to INT4 (W4A16); check, evaluate, serve and deploy them.",
    epilog="moe4 quantize SOURCE OUT --calibration chats.jsonl\nmoe4 serve OUT",
    context_settings=HELP_NAMES,
    no_args_is_help=True,
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
        False, "--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


for _panel, _group in GROUPS.items():
    for _name, _place in _group.items():
        _module = importlib.import_module(f"moe4.cli.{_place}")
        app.command(
            _name,
            cls=Command,
            context_settings={**HELP_NAMES, **getattr(_module, "CONTEXT_SETTINGS", {})},
            rich_help_panel=_panel,
            epilog="\n".join(_module.EXAMPLES),
        )(_module.command)
