"""One reading of both models' weights: the source's forward pass, and that of the release with each fault."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from moe4.calibration.corpus import Corpus
from moe4.evaluate.comparison.compare import error_ratio
from moe4.evaluate.comparison.divergence import TokenResults, compare_tokens
from moe4.forward.stream import LayerPass, Stream, run_expert
from moe4.forward.weights import Weights
from moe4.model.architecture import Network
from moe4.model.experts import ExpertMath
from moe4.power.faults import BothExperts, Damage, FaultyWeights, Place
from moe4.probe.form import Expectation
from moe4.probe.passes import join_prefixes, likeliest
from moe4.verify.checks import weight_error

RIGHT = "right"
"""The release as it is, among variants."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """Source and release, and their networks: in bfloat16, in which a server computes, and in float32."""

    source: Weights
    release: Weights
    source_network: Network
    network: Network
    exact_network: Network


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """The release with a fault, or with none; is_exact: computed in float32."""

    fault: Damage = field(default_factory=Damage)
    is_exact: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a variant of the release gives, before anything is judged.

    tokens: beside the source, on the text. answers: after each sequence of the probe. expert_errors: of each
    expert's output on the source's inputs. weight_error: the largest of what the fault changed, as verify
    measures it; None where it changed no expert. num_changed: other tensors that it changed.
    """

    tokens: TokenResults
    answers: list[Expectation]
    expert_errors: dict[Place, float]
    expert_tokens: dict[Place, int]
    weight_error: float | None
    num_changed: int


class _Pass:
    """One variant's forward pass; up to its fault's first layer it is that of the release as it is."""

    def __init__(self, variant: Variant, stream: Stream, weights: FaultyWeights) -> None:
        self.fault, self.stream, self.weights = variant.fault, stream, weights
        self.is_exact = variant.is_exact
        self.first_layer = 0 if variant.is_exact else variant.fault.first_layer
        self.errors: dict[Place, float] = {}
        self.weight_errors: list[float] = []
        self.passed = LayerPass(total=torch.empty(0))
        self.math: ExpertMath | None = None


class Trials:
    """Runs variants of a release over a text and over the probe's sequences, all at once.

    Each expert is read once for all variants, and a variant begins where its fault does. Memory is a few
    experts and a batch; the hidden states of every variant lie in `work`.
    """

    def __init__(
        self,
        models: Models,
        corpus: Corpus,
        asked: Sequence[Sequence[int]],
        work: Path,
        device: torch.device,
    ) -> None:
        self._models, self._corpus, self._work, self._device = models, corpus, work, device
        whole, rows = join_prefixes(asked)
        self._sequences = [*corpus.sequences, *whole]
        self._asked_rows = rows + corpus.num_tokens
        self._reader = BothExperts(models.source, models.release, models.network.experts)

    def run(self, variants: Mapping[str, Variant], on_layer: Callable[[], None]) -> dict[str, Found]:
        """Return what each variant gives, and RIGHT, the release as it is. Raises EvaluationError on NaN."""
        models = self._models
        source = self._stream("source", models.source, models.source_network, self._corpus.sequences)
        right = self._begin(RIGHT, Variant())
        passes = {name: self._begin(name, variant) for name, variant in variants.items()}
        source.embed()
        for each in (right, *(each for each in passes.values() if each.is_exact)):
            each.stream.embed()
        tokens: dict[Place, int] = {}
        for layer in range(models.network.num_layers):
            begun = [each for each in passes.values() if each.first_layer <= layer]
            self._run_layer(layer, source, right, begun, tokens)
            on_layer()
        for each in passes.values():
            each.errors = right.errors | each.errors
        return {name: self._finish(source, each, tokens) for name, each in (passes | {RIGHT: right}).items()}

    def _begin(self, name: str, variant: Variant) -> _Pass:
        models = self._models
        weights = FaultyWeights(models.release, variant.fault)
        network = models.exact_network if variant.is_exact else models.network
        return _Pass(variant, self._stream(name, weights, network, self._sequences), weights)

    def _stream(
        self, name: str, weights: Weights, network: Network, sequences: Sequence[Sequence[int]]
    ) -> Stream:
        return Stream(weights, network, sequences, self._work, self._device, prefix=f"{name}-")

    def _run_layer(
        self, layer: int, source: Stream, right: _Pass, others: Sequence[_Pass], tokens: dict[Place, int]
    ) -> None:
        """Run a layer of every pass; count the text's tokens that go to each expert of the source."""
        original = source.attend(layer)
        right.passed = right.stream.attend(layer)
        for each in others:
            each.passed = self._attend(each, layer, right)
        passes = [*others, right]
        shape = self._models.network.experts[layer]
        if shape is not None:
            math = source.expert_math(layer)
            for each in passes:
                each.math = each.stream.expert_math(layer)
            for expert in range(shape.num_experts):
                tokens[layer, expert] = self._run_expert((layer, expert), math, original, passes)
        source.finish_layer(original)
        for each in passes:  # the one that others follow comes last
            each.stream.finish_layer(each.passed)

    def _attend(self, each: _Pass, layer: int, right: _Pass) -> LayerPass:
        """Run a layer of a variant up to its experts; it begins where the release as it is stands."""
        if each.first_layer == layer and not each.is_exact:
            if each.fault.only_experts:
                return each.stream.follow(right.stream, right.passed)
            each.stream.hidden.copy_(right.stream.hidden)
        return each.stream.attend(layer)

    def _run_expert(
        self, place: Place, math: ExpertMath, original: LayerPass, passes: Sequence[_Pass]
    ) -> int:
        """Add an expert to every pass; return how many tokens of the text the source sends to it."""
        assert original.inputs is not None
        _, expert = place
        plain, clean = self._reader.original(place), self._reader.released(place)
        rows, gates = original.rows_of(expert)
        inputs, scale = original.inputs[rows], gates.unsqueeze(1)
        source = self._models.source_network.compute_dtype
        expected = run_expert(math, expert, self._cast(plain, source), inputs) * scale
        original.total.index_add_(0, rows, expected)
        known: dict[torch.dtype, float] = {}
        for each in passes:
            assert each.math is not None
            assert each.passed.inputs is not None
            dtype = each.stream.network.compute_dtype
            faulty = each.fault.expert(place, self._reader)
            weights = self._cast(clean if faulty is None else faulty, dtype)
            if faulty is not None:
                each.weight_errors += [weight_error(q, w) for q, w in zip(faulty, plain, strict=True)]
            if faulty is not None or dtype not in known:
                output = run_expert(each.math, expert, weights, inputs.to(dtype)) * scale
                error = error_ratio((output - expected).square().sum(), expected.square().sum())
                each.errors[place] = error
                if faulty is None:
                    known[dtype] = error
            else:
                each.errors[place] = known[dtype]
            taken, weighed = each.passed.rows_of(expert)
            output = run_expert(each.math, expert, weights, each.passed.inputs[taken])
            each.passed.total.index_add_(0, taken, output * weighed.unsqueeze(1))
        return len(rows)

    def _cast(self, weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        return [weight.to(self._device, dtype) for weight in weights]

    def _finish(self, source: Stream, each: _Pass, tokens: dict[Place, int]) -> Found:
        return Found(
            tokens=compare_tokens(source, each.stream, self._corpus),
            answers=likeliest(each.stream.last_logprobs(self._asked_rows)) if len(self._asked_rows) else [],
            expert_errors=each.errors,
            expert_tokens=tokens,
            weight_error=max(each.weight_errors, default=None),
            num_changed=each.weights.num_changed,
        )
