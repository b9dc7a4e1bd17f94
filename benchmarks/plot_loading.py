"""Draw what bench_loading.py measured: `python benchmarks/plot_loading.py FILE.png TITLE=FIGURES.json ...`.

A row for each file. Left: seconds from the command to the first token, by format and state of the page cache.
Right: memory of all servers' processes, their own and what is mapped of the release, by number of servers.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

NAMES = {"moe4": "moe4", "auto": "vLLM's loader"}
COLOURS = {"moe4": "#1f77b4", "auto": "#ff7f0e"}


def draw_start(axes: Axes, runs: list[dict[str, Any]]) -> None:
    for place, run in enumerate(runs):
        seconds = run["first"]["first_token_seconds"]
        axes.barh(place, seconds, color=COLOURS[run["format"]])
        axes.text(seconds, place, f" {seconds:.0f} s", va="center")
    axes.set_yticks(range(len(runs)), [f"{NAMES[run['format']]}, {run['cache']}" for run in runs])
    axes.invert_yaxis()
    axes.set_xlabel("seconds from the command to the first token")


def draw_memory(axes: Axes, runs: list[dict[str, Any]]) -> None:
    bars = []
    for run in runs:
        for number in range(1, 9):
            if memory := run.get(f"memory_with_{number}"):
                plural = "s" if number > 1 else ""
                bars.append((f"{NAMES[run['format']]}, {number} server{plural}", run["format"], memory))
    bars = list({label: (label, load_format, memory) for label, load_format, memory in bars}.values())
    for place, (_, load_format, memory) in enumerate(bars):
        own, mapped = memory["own"] / 1e9, memory["release"] / 1e9
        axes.barh(place, own, color=COLOURS[load_format])
        axes.barh(place, mapped, left=own, color=COLOURS[load_format], alpha=0.4, hatch="//")
        axes.text(own + mapped, place, f" {own:.1f} + {mapped:.1f}", va="center")
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("GB: own + mapped from the release's files")


def main() -> None:
    picture, *sources = sys.argv[1:]
    figure, rows = plt.subplots(
        len(sources), 2, figsize=(11, 2.4 * len(sources)), squeeze=False, layout="constrained"
    )
    for source, (left, right) in zip(sources, rows, strict=True):
        title, _, file = source.rpartition("=")
        runs = json.loads(Path(file).read_text())["runs"]
        draw_start(left, runs)
        draw_memory(right, runs)
        for axes in (left, right):
            axes.set_xlim(0, 1.25 * axes.get_xlim()[1])
            axes.set_title(title, fontsize=10, loc="left")
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main()
