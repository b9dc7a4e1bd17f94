"""`moe4 compare`: how far a release's predictions are from its source's, and where that begins.

Both models read the same text, teacher-forced, side by side, layer by layer. Every expert's weights are read
once from each; the release's also run on the source's inputs, which tells the error an expert adds from the
error it was handed.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe4.calibration.corpus import Corpus, is_reference_model, load_corpus, load_tokenizer
from moe4.errors import EvaluationError
from moe4.evaluate.forward import HEAD_ROWS, LayerPass, Stream, run_expert
from moe4.evaluate.request import find_data
from moe4.evaluate.statistics import Interval, mean_interval
from moe4.evaluate.weights import open_weights
from moe4.model.architecture import ExpertShape, Network
from moe4.recipe import Calibration

WORST_TOKENS = 20
CONTEXT_TOKENS = 16
EARLY_TOKENS = 1024
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
REFERENCE_TEXT = "heldout-chats.jsonl"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions:
    """The options of `moe4 compare`."""

    source: Path
    release: Path
    data: Path | None = None
    num_sequences: int = 100
    max_sequence_tokens: int = 1024
    compute_dtype: str = "bfloat16"
    device: str = "cpu"
    work: Path | None = None
    trust_remote_code: bool = False


def compare(options: CompareOptions, say: Say) -> dict[str, Any]:
    """Return the comparison. Raises CheckpointError, CalibrationError or EvaluationError."""
    source, release = open_weights(options.source), open_weights(options.release)
    dtype = DTYPES[options.compute_dtype]
    networks = [Network(weights.config, dtype) for weights in (source, release)]
    _check_alike(options, *networks)
    corpus = load_corpus(
        options.source,
        networks[0].config,
        Calibration(num_sequences=options.num_sequences, max_sequence_tokens=options.max_sequence_tokens),
        find_text(options.source, options.data),
        trust_remote_code=options.trust_remote_code,
    )
    tokenizer = load_tokenizer(
        options.source, networks[0].config, trust_remote_code=options.trust_remote_code
    )
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory(prefix="moe4-compare-", dir=options.work) as folder:
        works = [Path(folder, name) for name in ("source", "release")]
        for work in works:
            work.mkdir()
        before, after = (
            Stream(weights, network, corpus.sequences, work, device)
            for weights, network, work in zip((source, release), networks, works, strict=True)
        )
        predicts = _predicting_rows(corpus)
        layers = []
        for layer in range(before.network.num_layers):
            layers.append(_run_layer(before, after, layer))
            layers[-1]["kl"] = _early_kl(before, after, predicts)
            say(f"layer {layer + 1}/{before.network.num_layers}: {describe_layer(layers[-1])}")
        tokens = _compare_tokens(before, after, corpus)
    return {
        "source": str(options.source),
        "release": str(options.release),
        "data": corpus.description,
        "num_sequences": len(corpus.sequences),
        "compute_dtype": options.compute_dtype,
        **tokens.summary(corpus),
        "worst_tokens": tokens.worst(corpus, tokenizer),
        "layers": layers,
    }


def find_text(model: Path, data: Path | None) -> Path:
    """Return the text to read: the one given, or k2-tiny's held-out chats for that model."""
    if data is not None:
        return data
    if not is_reference_model(model):
        raise EvaluationError(
            f"comparing needs a text that {model} has not been calibrated on: give --data FILE.jsonl, with "
            'lines like {"messages": [...]} or {"text": "..."}'
        )
    return find_data(None) / REFERENCE_TEXT


def _check_alike(options: CompareOptions, source: Network, release: Network) -> None:
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        ours, theirs = getattr(source.config, name), getattr(release.config, name)
        if ours != theirs:
            raise EvaluationError(
                f"{options.release} is not a release of {options.source}: {name} is {theirs}, not {ours}"
            )


def _run_layer(before: Stream, after: Stream, layer: int) -> dict[str, Any]:
    """Run a layer of both models; return what it added to the difference."""
    source, release = before.attend(layer), after.attend(layer)
    shape = before.network.experts[layer]
    record: dict[str, Any] = {"layer": layer}
    if shape is not None:
        record |= _run_experts(before, after, layer, shape, source, release)
    difference = (release.total - source.total).square().sum()
    record["error"] = _ratio(difference, source.total.square().sum())
    before.finish_layer(source)
    after.finish_layer(release)
    return record


def _run_experts(
    before: Stream, after: Stream, layer: int, shape: ExpertShape, source: LayerPass, release: LayerPass
) -> dict[str, Any]:
    """Add both models' experts to their layer's output; return the errors that they add by themselves."""
    assert source.inputs is not None
    assert release.inputs is not None
    assert source.ids is not None
    assert release.ids is not None
    routed, added = before.scratch("routed"), before.scratch("added")
    errors, counts = [], []
    for expert in range(shape.num_experts):
        original, quantized = before.load_expert(shape, expert), after.load_expert(shape, expert)
        rows, gates = source.rows_of(expert)
        x, g = source.inputs[rows], gates.unsqueeze(1)
        expected = run_expert(before.network, layer, original, x) * g
        change = run_expert(before.network, layer, quantized, x) * g - expected
        source.total.index_add_(0, rows, expected)
        routed.index_add_(0, rows, expected)
        added.index_add_(0, rows, change)
        errors.append(_ratio(change.square().sum(), expected.square().sum()))
        counts.append(int(rows.numel()))
        rows, gates = release.rows_of(expert)
        output = run_expert(after.network, layer, quantized, release.inputs[rows])
        release.total.index_add_(0, rows, output * gates.unsqueeze(1))
    same = (source.ids.unsqueeze(2) == release.ids.unsqueeze(1)).any(2).float().mean()
    return {
        "added_error": _ratio(added.square().sum(), source.total.square().sum()),
        "experts_error": _ratio(added.square().sum(), routed.square().sum()),
        "same_experts": float(same),
        "expert_errors": errors,
        "expert_tokens": counts,
    }


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(f"{float(part) / max(float(whole), 1e-30):.6g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenResults:
    """Per predicted token, in the order of the text; `rows` tells which token each prediction follows."""

    rows: Tensor
    kl: Tensor
    nll: Tensor
    """[predictions, 2]: source, release."""
    best: Tensor
    """int64 [predictions, 2]: the likeliest token of each."""
    shared_top5: Tensor
    sequence: Tensor

    def summary(self, corpus: Corpus) -> dict[str, Any]:
        kl = self.kl.double()
        quantiles = torch.quantile(kl, torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
        interval = self._interval(kl)
        perplexities = self.nll.double().mean(0).exp().tolist()
        return {
            "num_tokens": len(self.kl),
            "kl": {
                "mean": float(kl.mean()),
                "interval": interval.as_list(),
                "median": quantiles[0],
                "p99": quantiles[1],
                "max": float(kl.max()),
            },
            "top1_agreement": float((self.best[:, 0] == self.best[:, 1]).double().mean()),
            "top5_agreement": float(self.shared_top5.double().mean() / 5),
            "perplexity": {"source": perplexities[0], "release": perplexities[1]},
        }

    def _interval(self, values: Tensor) -> Interval:
        """Resample sequences, not tokens, which within a sequence are alike."""
        num = int(self.sequence.max()) + 1
        sums = torch.zeros(num, dtype=torch.float64).index_add_(0, self.sequence, values)
        counts = torch.bincount(self.sequence, minlength=num).double()
        return mean_interval(sums.numpy(), counts.numpy())

    def worst(self, corpus: Corpus, tokenizer: Any) -> list[dict[str, Any]]:
        """Return the tokens where the two models differ most, with what stands before them."""
        flat = [token for sequence in corpus.sequences for token in sequence]
        starts = torch.tensor([0, *torch.tensor([len(s) for s in corpus.sequences]).cumsum(0).tolist()])
        found = []
        for place in self.kl.argsort(descending=True)[:WORST_TOKENS].tolist():
            row, sequence = int(self.rows[place]), int(self.sequence[place])
            begin = max(int(starts[sequence]), row + 1 - CONTEXT_TOKENS)
            words = [[flat[row + 1]], [int(self.best[place, 0])], [int(self.best[place, 1])]]
            token, ours, theirs = (tokenizer.decode(word) for word in words)
            found.append(
                {
                    "sequence": sequence,
                    "kl": float(self.kl[place]),
                    "context": tokenizer.decode(flat[begin : row + 1]),
                    "token": token,
                    "source_best": ours,
                    "release_best": theirs,
                    "source_probability": float((-self.nll[place, 0]).exp()),
                    "release_probability": float((-self.nll[place, 1]).exp()),
                }
            )
        return found


def _owner(corpus: Corpus) -> Tensor:
    """Return the number of each token's sequence."""
    lengths = torch.tensor([len(sequence) for sequence in corpus.sequences])
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def _predicting_rows(corpus: Corpus) -> Tensor:
    """Return the numbers of the tokens that another follows. Raises EvaluationError if there are none."""
    owner = _owner(corpus)
    rows = (owner[1:] == owner[:-1]).nonzero().flatten()
    if not len(rows):
        raise EvaluationError("the text has no token that follows another")
    return rows


def _early_kl(before: Stream, after: Stream, predicts: Tensor) -> float:
    """Return the mean KL of what the final norm and the head make of this layer's output.

    Of evenly spaced tokens, at most EARLY_TOKENS; after the last layer it is the models' own KL.
    """
    chosen = predicts[:: -(-len(predicts) // EARLY_TOKENS)]
    heads = before.head(), after.head()
    pieces = [kl_divergence(*(head(rows).cpu() for head in heads)) for rows in torch.split(chosen, HEAD_ROWS)]
    return float(torch.cat(pieces).mean())


def _compare_tokens(before: Stream, after: Stream, corpus: Corpus) -> TokenResults:
    """Compare the predictions of all tokens but each sequence's first, a few hundred at a time."""
    heads = before.head(), after.head()
    flat = torch.tensor([token for sequence in corpus.sequences for token in sequence])
    owner = _owner(corpus)
    predicts = torch.zeros(len(flat), dtype=torch.bool)
    predicts[_predicting_rows(corpus)] = True
    pieces: dict[str, list[Tensor]] = {name: [] for name in ("kl", "nll", "best", "shared_top5")}
    for start in range(0, len(flat), HEAD_ROWS):
        rows = slice(start, min(start + HEAD_ROWS, len(flat)))
        keep = predicts[rows]
        if not keep.any():
            continue
        p, q = (head(rows)[keep.to(before.hidden.device)].cpu() for head in heads)
        targets = flat[start + 1 : start + 1 + HEAD_ROWS][keep[: len(flat) - start - 1]]
        pieces["kl"].append(kl_divergence(p, q))
        pieces["nll"].append(
            -torch.stack([p, q], 1).gather(2, targets.view(-1, 1, 1).expand(-1, 2, 1))[..., 0]
        )
        pieces["best"].append(torch.stack([p.argmax(-1), q.argmax(-1)], 1))
        top = [logs.topk(5, dim=-1).indices for logs in (p, q)]
        pieces["shared_top5"].append((top[0].unsqueeze(2) == top[1].unsqueeze(1)).sum((1, 2)))
    joined = {name: torch.cat(parts) for name, parts in pieces.items()}
    return TokenResults(rows=predicts.nonzero().flatten(), sequence=owner[predicts], **joined)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p || q) in nats, float64 [rows], of log-probabilities [rows, vocabulary]."""
    p, q = p.double(), q.double()
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def describe_layer(record: dict[str, Any]) -> str:
    text = f"error {record['error']:.5f}, KL {record['kl']:.5f}"
    if "added_error" in record:
        text += f", added here {record['added_error']:.5f}, same experts {record['same_experts']:.1%}"
    return text


def describe(result: dict[str, Any]) -> str:
    """Return the comparison as text."""
    kl, perplexity = result["kl"], result["perplexity"]
    low, high = kl["interval"]
    lines = [
        f"text       {result['num_tokens']} tokens of {result['num_sequences']} sequences, {result['data']}",
        f"KL         {kl['mean']:.5f} nats a token [{low:.5f}, {high:.5f}], median {kl['median']:.5f}, "
        f"99 % below {kl['p99']:.4f}",
        f"agreement  {result['top1_agreement']:.2%} of likeliest tokens, {result['top5_agreement']:.2%} "
        "of the five likeliest",
        f"perplexity {perplexity['source']:.4f} -> {perplexity['release']:.4f}",
    ]
    lines += [f"layer {record['layer'] + 1:<4} {describe_layer(record)}" for record in result["layers"]]
    lines += [
        f"expert     layer {layer + 1} expert {expert}: its output's error {error:.4f} on {tokens} tokens"
        for error, layer, expert, tokens in worst_experts(result["layers"])[:5]
    ]
    for token in result["worst_tokens"][:5]:
        lines.append(
            f"token      KL {token['kl']:.3f}: {token['context'][-60:]!r} then {token['token']!r}: "
            f"{token['source_probability']:.1%} -> {token['release_probability']:.1%}"
        )
    return "\n".join(lines)


def worst_experts(layers: Sequence[dict[str, Any]]) -> list[tuple[float, int, int, int]]:
    """Return (error, layer, expert, tokens), the largest error first."""
    found = [
        (error, record["layer"], expert, record["expert_tokens"][expert])
        for record in layers
        for expert, error in enumerate(record.get("expert_errors", ()))
    ]
    return sorted(found, reverse=True)
