"""Which containers run vLLM, and which only have it in their name."""

import re
from typing import Any

from moe4.deploy.lint.place import entries, get

MARKS = ("vllm", "moe4", "rhaiis")
STARTS = re.compile(r"\bvllm serve\b|\bapi_server\b|\bmoe4 serve\b")
# Programs that stand beside a server and are often named after it.
BESIDE = re.compile(
    r"(^|[^a-z0-9])(gradio|ui|router|bench|benchmark|client|perf|exporter|tokenizer|proxy|operator|controller"
    r"|gateway|scheduler|dashboard|downloader|monitor)([^a-z0-9]|$)",
    re.I,
)
# What a shell computes: `$((2 * N))`, `$(cat size)`, backquotes; `$(NAME)` is Kubernetes's way to a variable.
COMPUTED = re.compile(r"\$\(\((?:[^()]|\([^()]*\))*\)\)|\$\((?!\w+\))(?:[^()]|\([^()]*\))*\)|`[^`]*`", re.A)


def hide_computed(script: str) -> str:
    """Put a variable that nobody sets in the place of what a shell computes: it is not seen."""
    return COMPUTED.sub("${COMPUTED}", script)


def looks_like_vllm(container: Any) -> bool:
    """Say whether a container runs vLLM, from its image and its command."""
    words: list[object] = []
    for key in ("command", "args", "entrypoint"):
        value = get(container, key)
        words += entries(value) or ([] if value is None else [value])
    name = str(get(container, "name") or "")
    return runs_vllm(str(get(container, "image") or ""), " ".join(map(str, words)), name)


def runs_vllm(image: str, command: str, name: str = "") -> bool:
    """Say the same of an image, a command line and the container's name."""
    if STARTS.search(command):
        return True
    repository = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    if BESIDE.search(repository) or BESIDE.search(name):
        return False
    in_path = any(mark in image for mark in MARKS if mark != "vllm")
    return in_path or any(mark in text for text in (repository, command, name) for mark in MARKS)
