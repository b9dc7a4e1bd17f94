"""What the core's commands are asked in a test, and what the others say where their extra is missing."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.openai_stand_in import serving as serving_chats
from probe.completions_stand_in import make_expected
from probe.completions_stand_in import serving as serving_probe

# A command of the core: its arguments, its exit code, and what its output must hold.
Case = tuple[list[str], int, str]


@contextmanager
def core_cases(source: Path, release: Path, folder: Path) -> Iterator[dict[str, Case]]:
    """Yield every command that needs no extra, while the servers that some of them ask are up.

    source: a checkpoint. release: one that was quantized. folder: where what the cases need is written.
    """
    expected = make_expected()
    (folder / "probe.json").write_text(json.dumps(expected))
    (folder / "run.sh").write_text("vllm serve Kimi-K2-Instruct --tensor-parallel-size 8\n")
    with serving_chats() as chats, serving_probe(expected) as probed:
        yield {
            "plan": (["plan", str(source), "--method", "rtn"], 0, "pip install 'moe4[quantize]'"),
            "fit": (["fit", str(release), "--gpu", "h100"], 0, "H100"),
            "deploy": (
                ["deploy", "podman", str(release), "--engine", "cpu", "--memory", "8"],
                0,
                "podman run",
            ),
            "lint": (["lint", str(folder / "run.sh")], 0, ""),
            "doctor": (["doctor", "--measure"], 0, "PyTorch, transformers: pip install 'moe4[quantize]'"),
            "smoke": (["smoke", chats], 0, "tool call"),
            "probe": (["probe", str(folder / "probe.json"), "--url", probed], 0, ""),
            "toolcheck": (["toolcheck", chats, "--limit", "2", "--retries", "0"], 1, ""),
            "card": (["card", str(release), "--dry-run"], 0, "INT4"),
            "report": (["report", str(release), "--output", str(folder / "report.html")], 0, ""),
        }


# The command, and the extra that it names. A folder that is no checkpoint is not looked at before.
MISSING = {
    "quantize": (["quantize", "{source}", "{folder}/out"], "quantize"),
    "verify": (["verify", "{release}"], "quantize"),
    "compare": (["compare", "{source}", "{release}", "--data", "{folder}/text.jsonl"], "quantize"),
    "coverage": (["coverage", "{release}"], "quantize"),
    "power": (["power", "{source}", "{release}"], "quantize"),
    "tune": (["tune", "{source}", "{release}", "{folder}/out"], "quantize"),
    "prove": (["prove", "{source}", "{release}"], "quantize"),
    "serve": (["serve", "{release}"], "cpu"),
    "chat": (["chat"], "chat"),
    "eval": (["eval", "{release}", "--task", "gsm8k"], "eval"),
}


def missing_arguments(command: str, source: Path, release: Path, folder: Path) -> list[str]:
    """Return the arguments of a command whose extra is missing."""
    return [text.format(source=source, release=release, folder=folder) for text in MISSING[command][0]]
