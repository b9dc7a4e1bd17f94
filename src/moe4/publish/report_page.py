"""`moe4 report`: one page that holds all that was measured of a release; no script, no network."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from moe4.checkpoint.report_file import ExpertRecord, FileEntry, LayerRecord, ReportedRelease
from moe4.deploy.sizing.release_size import read_release
from moe4.escape import visible, visible_lines
from moe4.evaluate.result_files import ComparisonFile, TaskResult
from moe4.publish.charts import bars, heat_map, intervals
from moe4.publish.commands import (
    choose_layout,
    prove_command,
    quantize_command,
    recipe_toml,
    vllm_command,
)
from moe4.publish.proof import Proof
from moe4.publish.words import CHANCES, CONFIDENCE, MEASURES, power_rows, sentences, smallest_loss
from moe4.units import duration, format_bytes, percent

WORST_EXPERTS = 10


def render_report(proof: Proof) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=PackageLoader("moe4.publish"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, size=format_bytes, duration=duration, lines=_lines, worth=_worth
    )
    page: str = environment.get_template("report.html").render(**_context(proof))
    return page.lstrip()


def _visible(value: object) -> object:
    """Return what the page shows of a value: nothing in a text is hidden, charts stay as they are."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _lines(text: str) -> Markup:
    """Return a text of several lines, which stay lines."""
    return Markup(escape(visible_lines(text)))


def _worth(value: float) -> str:
    """Return what an answer is worth: right, wrong, or its score."""
    return {0.0: "wrong", 1.0: "right"}.get(value, f"{value:.3g}")


def _context(proof: Proof) -> dict[str, object]:
    report = proof.report
    moe = [layer for layer in report.layers if layer.experts]
    tasks = list(proof.evaluation.tasks.items()) if proof.evaluation else []
    flips = [
        (task, pairs, result.change.gained + result.change.lost - len(pairs))
        for task, result in tasks
        if result.change and proof.evaluation and (pairs := proof.evaluation.flips.get(task))
    ]
    return {
        "name": proof.name,
        "source": proof.source_name,
        "date": _date(proof),
        "report": report,
        "contents": _contents(proof, flips=bool(flips)),
        "missing": _missing(proof),
        "tasks": tasks,
        "words": [(task, sentences(result)) for task, result in tasks],
        "losses": [(task, loss) for task, result in tasks if (loss := smallest_loss(result.change))],
        "flips": flips,
        "comparison": proof.comparison,
        "toolcheck": proof.toolcheck,
        "probe": proof.probe,
        "power": proof.power,
        "power_rows": power_rows(proof.power) if proof.power else [],
        "measures": MEASURES,
        "worst_experts": worst_experts(moe),
        "layers": [_layer_row(layer) for layer in report.layers],
        "error_map": _error_map(moe),
        "token_map": _token_map(moe),
        "recovery_chart": _recovery_chart(tasks),
        "growth_chart": _growth_chart(proof.comparison),
        "kl_chart": _kl_chart(proof.comparison),
        "made": _made(proof),
        "recipe": _flatten(report.recipe.model_dump()),
        "runs": proof.runs,
        "files": list_released(report.release),
        "chances": CHANCES,
        "confidence": CONFIDENCE,
        **_commands(proof),
    }


def _date(proof: Proof) -> str:
    """Return the day of the latest measurement; without one, today's."""
    runs = proof.runs
    day = datetime.fromisoformat(runs[-1].date) if runs else datetime.now(UTC)
    return f"{day.day} {day:%B %Y}"


def _contents(proof: Proof, *, flips: bool) -> list[tuple[str, str]]:
    """Return the page's sections: anchor and title."""
    sections = (
        ("accuracy", "Accuracy", proof.evaluation),
        ("changed", "Answers that changed", flips),
        ("predictions", "Predictions", proof.comparison),
        ("tools", "Tool calls", proof.toolcheck),
        ("power", "What this proof would have noticed", proof.power),
        ("experts", "Experts", True),
        ("made", "How it was made", True),
        ("repeat", "Repeat it, serve it", True),
        ("files", "Files", True),
        ("terms", "Terms", True),
    )
    return [(anchor, title) for anchor, title, there in sections if there]


def _missing(proof: Proof) -> list[str]:
    """Return in words what could have been measured and was not."""
    parts = (
        ("accuracy", proof.evaluation),
        ("predictions beside the source's", proof.comparison),
        ("tool calls", proof.toolcheck),
        ("the answers of a server", proof.probe),
    )
    return [what for what, result in parts if result is None]


def _made(proof: Proof) -> list[tuple[str, str]]:
    """Return what the release was made of, how and in what time."""
    report = proof.report
    rows = [("source", f"{proof.source_name or 'not recorded'}, {format_bytes(report.source.num_bytes)}")]
    if report.source.model_type:
        rows.append(("model type", report.source.model_type))
    rows.append(
        (
            "method",
            {"gptq": "GPTQ", "rtn": "rounding to nearest"}.get(report.recipe.method, "the source's codes"),
        )
    )
    if report.calibration:
        found = report.calibration
        rows.append(
            ("calibration", f"{found.data}: {found.num_sequences:,} sequences, {found.num_tokens:,} tokens")
        )
    if report.tuning:
        rows.append(("tuned", str(report.tuning)))
    if report.timing:
        memory = format_bytes(report.timing.peak_memory_bytes)
        rows.append(("time and memory", f"{duration(report.timing.seconds)}, at most {memory} of memory"))
    return rows


def _commands(proof: Proof) -> dict[str, object]:
    release = read_release(str(proof.folder))
    layout, obstacle = choose_layout(release)
    return {
        "quantize_command": quantize_command(proof.report),
        "recipe_toml": recipe_toml(proof.report.recipe),
        "prove_command": prove_command(proof) or "moe4 prove SOURCE OUT",
        "vllm_command": vllm_command(release, layout, "OUT"),
        "obstacle": obstacle,
    }


def list_released(release: ReportedRelease) -> list[tuple[str, FileEntry]]:
    """Return every file of the release with its size and SHA-256; old reports list shards alone."""
    return sorted({**release.shards, **(release.files or {})}.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertRow:
    """An expert among the worst: the means over its three matrices."""

    layer: int
    expert: int
    error: float
    rtn_error: float
    num_tokens: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow:
    """A layer's experts: their number, mean and worst error; the least, median and most tokens of one."""

    layer: int
    num_experts: int
    error: float | None
    worst: float | None
    tokens: tuple[int, int, int] | None


def expert_error(expert: ExpertRecord) -> float:
    """Return the mean error of an expert's matrices."""
    return statistics.fmean(matrix.error for _, matrix in expert.matrices())


def worst_experts(layers: list[LayerRecord]) -> list[ExpertRow]:
    """Return the experts with the largest error."""
    found = [
        ExpertRow(
            layer=layer.layer,
            expert=number,
            error=expert_error(expert),
            rtn_error=statistics.fmean(matrix.rtn_error for _, matrix in expert.matrices()),
            num_tokens=expert.num_tokens,
        )
        for layer in layers
        for number, expert in enumerate(layer.experts)
    ]
    return sorted(found, key=lambda item: -item.error)[:WORST_EXPERTS]


def _layer_row(layer: LayerRecord) -> LayerRow:
    errors = [expert_error(expert) for expert in layer.experts]
    tokens = [expert.num_tokens for expert in layer.experts if expert.num_tokens is not None]
    return LayerRow(
        layer=layer.layer,
        num_experts=len(errors),
        error=statistics.fmean(errors) if errors else None,
        worst=max(errors) if errors else None,
        tokens=(min(tokens), int(statistics.median(tokens)), max(tokens)) if tokens else None,
    )


def _error_map(layers: list[LayerRecord]) -> Markup | None:
    if not layers:
        return None
    rows = [[expert_error(expert) for expert in layer.experts] for layer in layers]
    worst = worst_experts(layers)[0]
    text = f"The largest is {worst.error:.4f}, expert {worst.expert} of layer {worst.layer}."
    labels = [f"layer {layer.layer}" for layer in layers]
    return Markup(heat_map(rows, labels, "Error of every expert", text))  # built by us, escaped where needed


def _token_map(layers: list[LayerRecord]) -> Markup | None:
    rows = [
        [float(expert.num_tokens) for expert in layer.experts if expert.num_tokens is not None]
        for layer in layers
    ]
    if not any(rows):
        return None
    counts = [count for row in rows for count in row]
    text = f"From {min(counts):,.0f} to {max(counts):,.0f} calibration tokens an expert."
    labels = [f"layer {layer.layer}" for layer in layers]
    return Markup(heat_map(rows, labels, "Calibration tokens of every expert", text))


def _recovery_chart(tasks: list[tuple[str, TaskResult]]) -> Markup | None:
    rows = [
        (name, task.change.recovery, task.change.recovery_interval[0], task.change.recovery_interval[1])
        for name, task in tasks
        if task.change and task.change.recovery is not None and task.change.recovery_interval
    ]
    if not rows:
        return None
    text = "; ".join(
        f"{row[0]} {percent(row[1])}, from {percent(row[2])} to {percent(row[3])}" for row in rows
    )
    return Markup(intervals(rows, 1.0, "Recovery with 95 % intervals", text))


def _growth_chart(comparison: ComparisonFile | None) -> Markup | None:
    if comparison is None:
        return None
    groups = [
        (f"layer {layer.layer}", (layer.error, layer.added_error or 0.0)) for layer in comparison.layers
    ]
    text = f"After the last layer {comparison.layers[-1].error:.5f}."
    names = ("after the layer", "added by its experts")
    return Markup(bars(groups, names, "Relative squared error of the hidden states", text))


def _kl_chart(comparison: ComparisonFile | None) -> Markup | None:
    if comparison is None:
        return None
    groups = [(f"layer {layer.layer}", (layer.kl,)) for layer in comparison.layers]
    text = f"After the last layer {comparison.layers[-1].kl:.5f} nats."
    return Markup(bars(groups, ("nats a token",), "KL divergence read through the head after a layer", text))


def _flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Return a nested table as (dotted key, text)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((prefix + key, text))
    return rows
