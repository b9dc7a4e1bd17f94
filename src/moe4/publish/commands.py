"""The commands that make a release again, measure it again and serve it; each can be copied as it stands."""

import re
from collections.abc import Iterator, Mapping

from moe4.checkpoint.report_file import Report, ReportRecipe, Tuning
from moe4.deploy.sizing.choose import Wanted, pick
from moe4.deploy.sizing.fit import Layout, check_groups
from moe4.deploy.sizing.release_size import ReleaseSize
from moe4.errors import DeployError
from moe4.escape import shell_line, toml_string
from moe4.publish.proof import Proof
from moe4.vllm_facts import flags

RECIPE_FILE = "recipe.toml"
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def quantize_command(report: Report) -> str:
    """Return the command that makes the release of SOURCE, with the recipe in `recipe_toml`.

    It is followed by the one that tunes it, if it was tuned.
    """
    tuning = report.tuning
    words = ["moe4", "quantize", "SOURCE", "OUT" if tuning is None else "UNTUNED", "--recipe", RECIPE_FILE]
    if report.calibration is not None:
        words += ["--calibration", "CALIBRATION.jsonl"]
    return shell_line(words) if tuning is None else f"{shell_line(words)}\n{_tune_command(tuning)}"


def _tune_command(tuning: Tuning) -> str:
    options = {
        "--calibration": "TUNING.jsonl",
        "--num-sequences": tuning.num_sequences + tuning.num_held_back,
        "--max-tokens": tuning.max_sequence_tokens,
        "--seed": tuning.seed,
        "--epochs": tuning.epochs,
        "--learning-rate": tuning.learning_rate,
        "--batch-tokens": tuning.batch_tokens,
    }
    words = ["moe4", "tune", "SOURCE", "UNTUNED", "OUT"]
    return shell_line([*words, *(str(word) for pair in options.items() for word in pair)])


def recipe_toml(resolved: ReportRecipe) -> str:
    """Return a resolved recipe as the TOML that `moe4 quantize --recipe` reads."""
    recipe = resolved.model_dump()
    plain = [line for key, value in recipe.items() if (line := _setting(key, value))]
    tables = [
        f"\n[{_key(key)}]\n" + "\n".join(_lines(value))
        for key, value in recipe.items()
        if isinstance(value, dict)
    ]
    return "\n".join([*plain, *tables]) + "\n"


def _lines(table: Mapping[str, object]) -> Iterator[str]:
    for key, value in table.items():
        if line := _setting(key, value):
            yield line


def _setting(key: str, value: object) -> str | None:
    """Return `key = value`; None for a table, and for what is not set."""
    if isinstance(value, dict) or value in (None, ""):
        return None
    return f"{_key(key)} = {_value(value)}"


def _key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else toml_string(key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return toml_string(value) if isinstance(value, str) else str(value)


def prove_command(proof: Proof) -> str | None:
    """Return the command that measured the results; None where they do not say."""
    runs = proof.runs
    return shell_line(runs[-1].command) if runs else None


def choose_layout(release: ReleaseSize) -> tuple[Layout, str | None]:
    """Return how the fewest GPUs hold the model, and what is wrong there without moe4's plugin."""
    try:
        return pick(release, Wanted()).layout, None
    except DeployError:
        layout = pick(release, Wanted(plugin=True)).layout
        return layout, (check_groups(release, layout) or "").partition("; ")[0]


def vllm_command(release: ReleaseSize, layout: Layout, model: str) -> str:
    """Return vLLM's own command for one machine; `model` is a repository or a folder."""
    words = ["vllm", "serve", model]
    if layout.num_gpus > 1:
        words += [flags.TENSOR_PARALLEL, str(layout.num_gpus)]
    if release.uses_kimi_calls:
        words += [flags.AUTO_TOOLS, flags.TOOL_PARSER, flags.KIMI_PARSER]
    if release.needs_own_code:
        words.append(flags.TRUST_REMOTE_CODE)
    return shell_line(words)
