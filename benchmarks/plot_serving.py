"""Draw what bench_serving.py measured: `python benchmarks/plot_serving.py FIGURES.json PICTURE.png TITLE`.

Left: tokens per second of decoding at each batch, beside what reading the weights alone would allow. Right:
the milliseconds of a step of decoding, by part.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

PARTS = {
    "routed experts": "#1f77b4",
    "shared experts": "#6baed6",
    "rest of the MoE": "#c6dbef",
    "MLA itself": "#d62728",
    "attention's projections": "#ff9896",
    "dense MLP": "#9467bd",
    "head": "#8c564b",
    "norms and rest of the model": "#7f7f7f",
    "engine, scheduler, sampling": "#bcbd22",
}


def by_part(row: dict[str, Any]) -> dict[str, float]:
    """Return the milliseconds of each part in a step, none within another."""
    share = dict.fromkeys(("shared experts", "routed experts", "dense MLP"), 0.0) | row["decode_shares"]
    shares = {
        "routed experts": share["routed experts"],
        "shared experts": share["shared experts"],
        "rest of the MoE": share["MoE"] - share["routed experts"] - share["shared experts"],
        "MLA itself": share["attention: MLA itself"],
        "attention's projections": share["attention"] - share["attention: MLA itself"],
        "dense MLP": share["dense MLP"],
        "head": share["head"],
        "norms and rest of the model": share["norms"] + share["rest of the model"],
        "engine, scheduler, sampling": share["engine and scheduler"] + share["sampling"],
    }
    return {part: 1e3 * row["decode_step_seconds"][1] * value for part, value in shares.items()}


def main() -> None:
    """Draw both."""
    figures = json.loads(Path(sys.argv[1]).read_text())
    models = list(figures)
    batches = [row["batch"] for row in figures[models[0]]["rows"]]
    canvas, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6))
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        for place, row in enumerate(figures[model]["rows"]):
            x = place + (number - (len(models) - 1) / 2) * width
            left.bar(x, row["decode_tokens_per_second"], 0.9 * width, color=f"C{number}", label=model)
            ceiling = row["batch"] / row["reading_seconds"]
            left.hlines(ceiling, x - 0.45 * width, x + 0.45 * width, color="black", label="reading alone")
            bottom = 0.0
            for part, milliseconds in by_part(row).items():
                right.bar(x, milliseconds, 0.9 * width, bottom=bottom, color=PARTS[part], label=part)
                bottom += milliseconds
            right.text(x, bottom, model.replace(", ", ",\n"), ha="center", va="bottom", fontsize=6)
    for axes, what in ((left, "decoded tokens per second"), (right, "milliseconds of a step")):
        axes.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
        axes.set_ylabel(what)
        labels = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(labels.values(), labels.keys(), fontsize=7, loc="upper left")
    left.set_yscale("log")
    canvas.suptitle(sys.argv[3])
    canvas.tight_layout()
    canvas.savefig(sys.argv[2], dpi=110)


if __name__ == "__main__":
    main()
