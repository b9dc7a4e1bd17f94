"""`moe4 compare`: how far a release's predictions are from its source's, and where that begins.

Both models read the same text, teacher-forced, side by side, layer by layer. Every expert's weights are read
once from each; the release's also run on the source's inputs, which tells the error an expert adds from the
error it was handed.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe4 import reference
from moe4.calibration.corpus import Corpus, load_corpus
from moe4.calibration.tokenizer import load_tokenizer
from moe4.errors import EvaluationError
from moe4.escape import visible
from moe4.evaluate.built_in import HARD_CASES
from moe4.evaluate.comparison.divergence import compare_tokens, early_kl, predicting_rows
from moe4.evaluate.result_files import ComparisonFile, ExpertsDifference, LayerDifference
from moe4.forward.device import usable_device
from moe4.forward.stream import LayerPass, Stream, run_expert
from moe4.forward.trial import try_family
from moe4.forward.weights import open_model
from moe4.model.architecture import Network
from moe4.model.outline import ExpertShape
from moe4.progress import OnProgress, Pace, ignore
from moe4.recipe import Calibration, ComputeDtype
from moe4.units import layer_done

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
NUM_SEQUENCES = 100
SQUARED_ROWS = 8192  # rows that are squared in float64 at a time

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions:
    """The options of `moe4 compare`."""

    source: Path
    release: Path
    data: Path | None = None
    num_sequences: int = NUM_SEQUENCES
    max_sequence_tokens: int = 1024
    compute_dtype: ComputeDtype = "bfloat16"
    device: str = "cpu"
    work: Path | None = None
    family_as_is: bool = False
    trust_remote_code: bool = False


def compare(options: CompareOptions, say: Say, on_progress: OnProgress = ignore) -> ComparisonFile:
    """Return the comparison. Raises CheckpointError, CalibrationError or EvaluationError."""
    pace = Pace(on_progress, "comparing")
    dtype = DTYPES[options.compute_dtype]
    (source, network), (release, other) = (
        open_model(folder, dtype, family_as_is=options.family_as_is)
        for folder in (options.source, options.release)
    )
    try_family(source.config)
    networks = [network, other]
    require_alike(options.source, options.release, *networks)
    corpus = load_text(options, networks[0].config)
    say(corpus.recognized)
    tokenizer = load_tokenizer(
        options.source, networks[0].config, trust_remote_code=options.trust_remote_code
    )
    device = usable_device(options.device)
    with tempfile.TemporaryDirectory(prefix="moe4-compare-", dir=options.work) as folder:
        works = [Path(folder, name) for name in ("source", "release")]
        for work in works:
            work.mkdir()
        before, after = (
            Stream(weights, network, corpus.sequences, work, device)
            for weights, network, work in zip((source, release), networks, works, strict=True)
        )
        before.embed()
        after.embed()
        predicts = predicting_rows(corpus)
        layers: list[LayerDifference] = []
        for layer in range(before.network.num_layers):
            pace.layer(layer, before.network.num_layers)
            layers.append(_run_layer(before, after, layer, predicts))
            say(f"{layer_done(layer, before.network.num_layers)}: {describe_layer(layers[-1])}")
        tokens = compare_tokens(before.head(), after.head(), corpus)
    return ComparisonFile(
        source=visible(str(options.source)),
        release=visible(str(options.release)),
        data=visible(corpus.description),
        num_sequences=len(corpus.sequences),
        compute_dtype=options.compute_dtype,
        num_tokens=tokens.num_tokens,
        kl=tokens.divergence(),
        top1_agreement=tokens.top1_agreement,
        top5_agreement=tokens.top5_agreement,
        perplexity=tokens.perplexity(),
        worst_tokens=tokens.worst(corpus, tokenizer),
        layers=layers,
    )


def check_comparison(options: CompareOptions) -> None:
    """Raise what `compare` would raise for bad options, models or text, from headers and the text alone."""
    networks = [
        open_model(folder, DTYPES[options.compute_dtype], family_as_is=options.family_as_is)[1]
        for folder in (options.source, options.release)
    ]
    require_alike(options.source, options.release, *networks)
    predicting_rows(load_text(options, networks[0].config))


def find_text(data: Path | None) -> Path:
    """Return the file of the text to read: moe4's own conversations where none is given.

    `reference` stands for the reference model's held-out chats.
    """
    if data is None:
        return HARD_CASES
    return reference.data_folder() / reference.TEXT if reference.is_asked_for(data) else data


def load_text(options: CompareOptions, config: Any) -> Corpus:
    """Return the text to read, as tokens of the source. Raises CalibrationError."""
    return load_corpus(
        options.source,
        config,
        Calibration(num_sequences=options.num_sequences, max_sequence_tokens=options.max_sequence_tokens),
        find_text(options.data),
        trust_remote_code=options.trust_remote_code,
    )


def require_alike(source_folder: Path, release_folder: Path, source: Network, release: Network) -> None:
    """Raise EvaluationError unless two models may be a source and its release."""
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        ours, theirs = getattr(source.config, name), getattr(release.config, name)
        if ours != theirs:
            raise EvaluationError(
                f"{release_folder} is not a release of {source_folder}: {name} is {theirs}, not {ours}"
            )


def _run_layer(before: Stream, after: Stream, layer: int, predicts: Tensor) -> LayerDifference:
    """Run a layer of both models; return what it added to the difference."""
    source, release = before.attend(layer), after.attend(layer)
    shape = before.network.experts[layer]
    added = ExpertsDifference(layer=layer)
    if shape is not None:
        added = _run_experts(before, after, layer, shape, source, release)
    expected, found = before.complete(source), after.complete(release)
    error = error_ratio(found - expected, expected)
    before.finish_layer(source)
    after.finish_layer(release)
    kl = early_kl(before, after, predicts)
    errors = (error, added.added_error or 0.0, added.experts_error or 0.0, *(added.expert_errors or ()))
    if not all(map(math.isfinite, errors)):
        raise EvaluationError(
            f"layer {layer}: the two models' values are so far apart that the difference overflows float32; "
            "one of the two is damaged: see moe4 verify RELEASE --source SOURCE"
        )
    return LayerDifference(error=error, kl=kl, **added.model_dump(exclude_unset=True))


def _run_experts(
    before: Stream, after: Stream, layer: int, shape: ExpertShape, source: LayerPass, release: LayerPass
) -> ExpertsDifference:
    """Add both models' experts to their layer's output; return the errors that they add by themselves."""
    assert source.ids is not None
    assert release.ids is not None
    routed, added = (before.scratch(name, shape.hidden_size) for name in ("routed", "added"))
    maths = before.expert_math(layer), after.expert_math(layer)
    errors, counts = [], []
    for expert in range(shape.num_experts):
        original, quantized = before.load_expert(shape, expert), after.load_expert(shape, expert)
        rows, gates = source.rows_of(expert)
        x, g = source.inputs_of(expert), gates.unsqueeze(1)
        expected = run_expert(maths[0], expert, original, x) * g
        change = run_expert(maths[0], expert, quantized, x) * g - expected
        source.total.index_add_(0, rows, expected)
        routed.index_add_(0, rows, expected)
        added.index_add_(0, rows, change)
        errors.append(error_ratio(change, expected))
        counts.append(int(rows.numel()))
        rows, gates = release.rows_of(expert)
        output = run_expert(maths[1], expert, quantized, release.inputs_of(expert))
        release.total.index_add_(0, rows, output * gates.unsqueeze(1))
    same = (source.ids.unsqueeze(2) == release.ids.unsqueeze(1)).any(2).float().mean()
    return ExpertsDifference(
        layer=layer,
        added_error=error_ratio(added, source.total),
        experts_error=error_ratio(added, routed),
        same_experts=float(same),
        expert_errors=errors,
        expert_tokens=counts,
    )


def error_ratio(part: Tensor, whole: Tensor) -> float:
    """Return |part|^2 / |whole|^2 of [tokens, columns], to six digits; 0 of nothing."""
    return float(f"{_sum_squares(part) / max(_sum_squares(whole), 1e-30):.6g}")


def _sum_squares(values: Tensor) -> float:
    """Return the sum in float64, where squares of float32 do not overflow; SQUARED_ROWS rows at a time."""
    pieces = torch.split(values, SQUARED_ROWS)
    return math.fsum(float(rows.double().square().sum()) for rows in pieces)


def describe_layer(record: LayerDifference) -> str:
    text = f"error {record.error:.5f}, KL {record.kl:.5f}"
    if record.added_error is not None and record.same_experts is not None:
        text += f", added here {record.added_error:.5f}, same experts {record.same_experts:.1%}"
    return text


def describe(result: ComparisonFile) -> str:
    """Return the comparison as text."""
    kl, perplexity = result.kl, result.perplexity
    low, high = kl.interval
    lines = [
        f"text       {result.num_tokens} tokens of {result.num_sequences} sequences, {result.data}",
        f"KL         {kl.mean:.5f} nats a token [{low:.5f}, {high:.5f}], median {kl.median:.5f}, "
        f"99 % below {kl.p99:.4f}",
        f"agreement  {result.top1_agreement:.2%} of likeliest tokens, {result.top5_agreement:.2%} "
        "of the five likeliest",
        f"perplexity {perplexity.source:.4f} -> {perplexity.release:.4f}",
    ]
    lines += [f"layer {record.layer:<4} {describe_layer(record)}" for record in result.layers]
    lines += [
        f"expert     layer {layer} expert {expert}: its output's error {error:.4f} on {tokens} tokens"
        for error, layer, expert, tokens in worst_experts(result.layers)[:5]
    ]
    for token in result.worst_tokens[:5]:
        lines.append(
            f"token      KL {token.kl:.3f}: {token.context[-60:]!r} then {token.token!r}: "
            f"{token.source_probability:.1%} -> {token.release_probability:.1%}"
        )
    return "\n".join(lines)


def worst_experts(layers: Sequence[LayerDifference]) -> list[tuple[float, int, int, int]]:
    """Return (error, layer, expert, tokens), the largest error first."""
    found = [
        (error, record.layer, expert, record.expert_tokens[expert])
        for record in layers
        for expert, error in enumerate(record.expert_errors)
    ]
    return sorted(found, reverse=True)
