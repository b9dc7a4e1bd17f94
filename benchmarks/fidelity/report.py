"""The benchmark's result as Markdown."""

import statistics
from pathlib import Path
from typing import Any

LAYER_TITLES = {
    "moe4": "moe4",
    "rtn": "round to nearest",
    "gptq": "plain GPTQ",
    "moe-quant": "MoE-Quant's algorithm",
    "all-tokens": "plain GPTQ, every token to every expert",
}


def write_markdown(result: dict[str, Any], path: Path) -> None:
    """Write the result's tables."""
    lines = ["# Fidelity", "", *_machine(result), "", *_model(result["model"])]
    if result["layers"]:
        lines += ["", *_layers(result["layers"])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _machine(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    return [
        f"{machine['cpu']}, {machine['num_cpus']} cores, {machine['num_threads']} threads used; "
        f"moe4 {machine['moe4']}, commit {machine['commit']}, torch {machine['torch']}.",
        "",
        f"    {result['command']}",
    ]


def _model(model: dict[str, Any]) -> list[str]:
    calibration, heldout = model["calibration"], model["heldout"]
    lines = [
        "## k2-tiny",
        "",
        f"Calibrated on the same {calibration['tokens']:,} tokens ({calibration['sequences']} documents); "
        f"measured on {heldout['tokens']:,} held-out tokens ({heldout['documents']} documents), "
        "teacher-forced, float32. ± is one "
        "standard error with documents as the draws; the last column is paired by document. Errors are "
        "tr(D H Dᵀ) / tr(W H Wᵀ), mean over the experts, with H from the unquantized network on the "
        "held-out text.",
        "",
        "| method | KL to BF16, 10⁻³ nats a token | same top token | error of gate, up | of down | "
        "moe4's KL / its KL |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in model["methods"].values():
        kl, agreement, ratio = row["kl"], row["agreement"], row["moe4_kl_ratio"]
        error = row["matrix_error"]
        lines.append(
            f"| {row['title']} | {1e3 * kl[0]:.3f} ± {1e3 * kl[1]:.3f} | "
            f"{agreement[0]:.2%} ± {agreement[1]:.2%} | {(error['gate'] + error['up']) / 2:.5f} | "
            f"{error['down']:.5f} | {ratio[0]:.3f} ± {ratio[1]:.3f} |"
        )
    lines += ["", *_accuracy(model)]
    for row in model["methods"].values():
        if "versions" in row:
            versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
            lines += ["", f"{row['title']}: {versions}."]
    for title, reason in model["failed"].items():
        lines += ["", f"{title} did not finish: `{reason}`"]
    return lines


def _accuracy(model: dict[str, Any]) -> list[str]:
    answered = model["answered"]
    lines = [
        f"Exact answers to {answered['problems']:,} held-out word problems, 0-shot, greedy; BF16 "
        f"{answered['bf16']:.2%}. Differences are in percentage points, paired by problem, with 95 % "
        "intervals.",
        "",
        "| method | exact answers | change from BF16 | gained, lost | moe4 is ahead by |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in model["methods"].values():
        change, ahead = row["accuracy_change"], row["moe4_accuracy_change"]
        lines.append(
            f"| {row['title']} | {row['accuracy']:.2%} | {_points(change)} | "
            f"{change['gained']}, {change['lost']} | {_points(ahead)} |"
        )
    return lines


def _points(test: dict[str, Any]) -> str:
    low, high = test["difference_interval"]
    return f"{100 * test['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _layers(layers: dict[str, Any]) -> list[str]:
    draws = layers["draws"]
    loads = draws[0]["loads"]
    lines = [
        "## Generated layers",
        "",
        f"{len(draws)} seeded layers (correlated inputs, outlier channels, skewed loads; "
        "`fidelity/synthetic.py`), "
        f"{layers['tokens']:,} calibration tokens; in the first an expert sees {loads['least']:,} to "
        f"{loads['most']:,} tokens, median {loads['median']:,}. Relative squared error of the output on "
        "other tokens, mean over layers; cold experts are the quarter with the fewest tokens.",
        "",
        "| method | layer's output | cold experts | other experts |",
        "| --- | --- | --- | --- |",
    ]
    for name, title in LAYER_TITLES.items():
        means = [
            statistics.fmean(draw[name][key] for draw in draws)
            for key in ("output_error", "cold_experts", "other_experts")
        ]
        lines.append(f"| {title} | " + " | ".join(f"{mean:.5f}" for mean in means) + " |")
    return lines
