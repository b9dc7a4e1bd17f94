"""moe4: INT4 (W4A16) releases of giant Mixture-of-Experts checkpoints (docs/python.md).

    import moe4

    report = moe4.quantize("Kimi-K2-Instruct", "release", calibration="chats.jsonl")
    assert moe4.verify("release", source="Kimi-K2-Instruct").ok
    with moe4.serve("release") as server:
        server.client().chat.completions.create(model=server.model, messages=[...])

There is a function for each command. Nothing heavy is imported before one is called.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe4 import errors as errors
    from moe4.api.checking import check_answers as check_answers
    from moe4.api.checking import probe as probe
    from moe4.api.checking import probe_script as probe_script
    from moe4.api.checking import verify as verify
    from moe4.api.deploying import deploy as deploy
    from moe4.api.linting import lint as lint
    from moe4.api.making import load_report as load_report
    from moe4.api.making import plan as plan
    from moe4.api.making import quantize as quantize
    from moe4.api.making import tune as tune
    from moe4.api.measuring import compare as compare
    from moe4.api.measuring import coverage as coverage
    from moe4.api.measuring import eval as eval
    from moe4.api.measuring import power as power
    from moe4.api.measuring import toolcheck as toolcheck
    from moe4.api.processes import find_ranks as find_ranks
    from moe4.api.processes import own_process as own_process
    from moe4.api.publishing import card as card
    from moe4.api.publishing import list_uploads as list_uploads
    from moe4.api.publishing import prove as prove
    from moe4.api.publishing import push as push
    from moe4.api.publishing import report as report
    from moe4.api.serving import chat as chat
    from moe4.api.serving import doctor as doctor
    from moe4.api.serving import serve as serve
    from moe4.api.serving import serve_command as serve_command
    from moe4.api.serving import smoke as smoke
    from moe4.api.sizing import fit as fit
    from moe4.checkpoint.report_file import Report as Report
    from moe4.progress import Progress as Progress
    from moe4.recipe import Calibration as Calibration
    from moe4.recipe import Gptq as Gptq
    from moe4.recipe import Recipe as Recipe
    from moe4.recipe import resolve_recipe as resolve_recipe

__version__ = "0.1.0"

# Where each public name is defined.
_PLACES = {
    "Calibration": "recipe",
    "Gptq": "recipe",
    "Progress": "progress",
    "Recipe": "recipe",
    "Report": "checkpoint.report_file",
    "card": "api.publishing",
    "chat": "api.serving",
    "check_answers": "api.checking",
    "compare": "api.measuring",
    "coverage": "api.measuring",
    "deploy": "api.deploying",
    "doctor": "api.serving",
    "errors": "errors",
    "eval": "api.measuring",
    "find_ranks": "api.processes",
    "fit": "api.sizing",
    "lint": "api.linting",
    "list_uploads": "api.publishing",
    "load_report": "api.making",
    "own_process": "api.processes",
    "plan": "api.making",
    "power": "api.measuring",
    "probe": "api.checking",
    "probe_script": "api.checking",
    "prove": "api.publishing",
    "push": "api.publishing",
    "quantize": "api.making",
    "report": "api.publishing",
    "resolve_recipe": "recipe",
    "serve": "api.serving",
    "serve_command": "api.serving",
    "smoke": "api.serving",
    "toolcheck": "api.measuring",
    "tune": "api.making",
    "verify": "api.checking",
}

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'moe4' has no attribute {name!r}")
    module = importlib.import_module(f"moe4.{place}")
    return module if name == place else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Python sets a package as an attribute of moe4 when it is first imported, and never again. These bear a
# function's name: they are imported now, which costs next to nothing, so that the name stays the function's.
for _name in ("deploy", "power", "probe", "prove", "quantize", "serve", "tune", "verify"):
    importlib.import_module(f"moe4.{_name}")
    del globals()[_name]
del _name
