"""Forward passes of a release, as it is and with faults, beside its source."""

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from moe4.calibration.corpus import Corpus
from moe4.evaluate.comparison.compare import error_ratio
from moe4.evaluate.comparison.divergence import TokenResults, compare_tokens
from moe4.forward.stream import HEAD_ROWS, LayerPass, Stream, run_expert
from moe4.forward.weights import Weights
from moe4.model.architecture import Network
from moe4.model.experts import ExpertMath
from moe4.power.faults import BothExperts, Damage, ExpertChange, FaultyWeights, Place
from moe4.probe.form import Expectation
from moe4.probe.passes import join_prefixes, likeliest
from moe4.verify.checks import weight_error

RIGHT, EXACT = "right", "exact"
"""The release as it is, computed in bfloat16 and in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """Source and release, and their networks: in bfloat16, in which a server computes, and in float32."""

    source: Weights
    release: Weights
    source_network: Network
    network: Network
    exact_network: Network


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighed:
    """What the experts of a faulty release show without a pass of it.

    expert_errors: of each expert's output on the source's inputs. weight_error: the largest of what the fault
    changed, as verify measures it; None where it changed no expert.
    """

    expert_errors: dict[Place, float]
    weight_error: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a pass of a release gives, before anything is judged.

    tokens: beside the source, on the text; NaN where the release gives NaN. answers: after each sequence of
    the probe; None if one of them holds NaN. num_changed: tensors beside the experts that the fault changed.
    """

    weighed: Weighed
    tokens: TokenResults
    answers: list[Expectation] | None
    num_changed: int


@dataclass(kw_only=True, slots=True)
class _Pass:
    """A forward pass, of the release as it is or with a fault."""

    stream: Stream
    weights: FaultyWeights
    damage: Damage
    passed: LayerPass = field(default_factory=lambda: LayerPass(total=torch.empty(0, dtype=torch.float32)))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Beside:
    """An expert of the source, its tokens of the text, and what it adds to them, float32 [tokens, hidden]."""

    weights: list[Tensor]
    rows: Tensor
    inputs: Tensor
    gates: Tensor
    expected: Tensor


class Trials:
    """Runs a release over a text and over the probe's sequences, as it is and then with faults.

    `run_right` comes first and keeps what later passes begin with: the release's hidden states before each
    layer, and what the source sends to its experts. A faulty release then runs from its fault's first layer
    on, and the source does not run again. What is kept, and the hidden states of every pass, lie in `work`;
    in memory are a few experts and a batch.
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
        self._source = Stream(
            models.source, models.source_network, corpus.sequences, work, device, prefix="source-"
        )
        self._logprobs = torch.empty(0, dtype=torch.float32)
        self._hidden: list[Tensor] = []  # of the release as it is, before each layer
        self._asked_experts: dict[int, LayerPass] = {}  # by layer: what the source sends to its experts
        self._maths: dict[Network, ExpertMath] = {}  # of the layer that is being run
        self._errors: dict[tuple[Place, ExpertChange | None, torch.dtype], float] = {}
        self._weight_errors: dict[tuple[Place, ExpertChange], float] = {}
        self.expert_tokens: dict[Place, int] = {}
        """How many tokens of the text the source sends to each expert."""

    def run_right(self, on_layer: Callable[[], None]) -> dict[str, Found]:
        """Return what the release as it is gives, RIGHT and EXACT. Raises EvaluationError on NaN."""
        models, source = self._models, self._source
        networks = {RIGHT: models.network, EXACT: models.exact_network}
        passes = {
            name: self._begin(name, Damage(), network, self._work, may_fail=False)
            for name, network in networks.items()
        }
        source.embed()
        for each in passes.values():
            each.stream.embed()
        for layer in range(models.network.num_layers):
            right = passes[RIGHT].stream
            self._hidden.append(right.keep(f"hidden-{layer}", right.hidden))
            original = source.attend(layer)
            if original.inputs is not None:
                kept = source.keep(f"inputs-{layer}", original.inputs)
                self._asked_experts[layer] = replace(original, inputs=kept)
            for each in passes.values():
                each.passed = each.stream.attend(layer)
            self._run_experts(layer, list(passes.values()), {}, total=original.total)
            source.finish_layer(original)
            for each in passes.values():
                each.stream.finish_layer(each.passed)
            on_layer()
        self._logprobs = self._keep_logprobs()
        return {name: self._finish(each) for name, each in passes.items()}

    def run(
        self, damages: Mapping[str, Damage], weighed: Iterable[Damage], on_layer: Callable[[], None]
    ) -> dict[str, Found]:
        """Return what the release gives with each of the damages.

        weighed: others that `weigh` will be asked about; the same reading of the weights does for them.
        """
        wanted: dict[Place, list[ExpertChange]] = {}
        for damage in (*damages.values(), *weighed):
            for place, change in damage.experts.items():
                if (place, change) not in self._weight_errors:
                    wanted.setdefault(place, []).append(change)
        with tempfile.TemporaryDirectory(prefix="round-", dir=self._work) as work:
            passes = {
                name: self._begin(name, damage, self._models.network, Path(work), may_fail=True)
                for name, damage in damages.items()
            }
            for layer in range(self._models.network.num_layers):
                self._run_layer(layer, list(passes.values()), wanted)
                on_layer()
            return {name: self._finish(each) for name, each in passes.items()}

    def weigh(self, damage: Damage, network: Network | None = None) -> Weighed:
        """Return what a damage's experts show; it was among those of a run."""
        dtype = (network or self._models.network).compute_dtype
        errors = {
            place: self._errors[place, damage.experts.get(place), dtype] for place in self.expert_tokens
        }
        changed = [self._weight_errors[item] for item in damage.experts.items()]
        return Weighed(expert_errors=errors, weight_error=largest(changed) if changed else None)

    def _begin(self, name: str, damage: Damage, network: Network, work: Path, *, may_fail: bool) -> _Pass:
        weights = FaultyWeights(self._models.release, damage.dropped)
        stream = Stream(
            weights,
            network,
            self._sequences,
            work,
            self._device,
            prefix=f"{name}-",
            may_fail=may_fail,
        )
        return _Pass(stream=stream, weights=weights, damage=damage)

    def _run_layer(
        self, layer: int, passes: Sequence[_Pass], wanted: dict[Place, list[ExpertChange]]
    ) -> None:
        """Run a layer of every pass that has begun; weigh the changes that are wanted in it."""
        begun = [each for each in passes if each.damage.first_layer <= layer]
        module: nn.Module | None = None
        leader: _Pass | None = None
        for each in begun:
            begins = each.damage.first_layer == layer
            if begins and each.damage.only_experts and leader is not None:
                each.passed = each.stream.follow(leader.stream, leader.passed)
                continue
            if begins:
                each.stream.hidden.copy_(self._hidden[layer])
            if each.damage.only_experts:
                module = module or each.stream.build_layer(layer)
            each.passed = each.stream.attend(layer, module if each.damage.only_experts else None)
            if begins and each.damage.only_experts:
                leader = each
        if begun or any(place[0] == layer for place in wanted):
            self._run_experts(layer, begun, wanted)
        for each in sorted(begun, key=lambda each: each is leader):  # what others follow comes last
            each.stream.finish_layer(each.passed)

    def _run_experts(
        self,
        layer: int,
        passes: Sequence[_Pass],
        wanted: Mapping[Place, Sequence[ExpertChange]],
        total: Tensor | None = None,
    ) -> None:
        """Run a layer's experts in every pass, and weigh the changes that are wanted.

        total: of the source, where its own pass is under way.
        """
        shape = self._models.network.experts[layer]
        if shape is None:
            return
        self._maths.clear()
        for expert in range(shape.num_experts):
            place = (layer, expert)
            beside = None
            if total is not None or place in wanted:
                beside = self._run_source_expert(place)
            if total is not None and beside is not None:
                total.index_add_(0, beside.rows, beside.expected)
            groups: dict[ExpertChange | None, list[_Pass]] = {change: [] for change in wanted.get(place, ())}
            for each in passes:
                groups.setdefault(each.damage.experts.get(place), []).append(each)
            for change, members in groups.items():
                self._run_expert(place, change, members, beside)

    def _run_source_expert(self, place: Place) -> _Beside:
        """Run an expert of the source on the tokens that it sends there."""
        layer, expert = place
        asked = self._asked_experts[layer]
        rows, gates = asked.rows_of(expert)
        inputs, gates = asked.inputs_of(expert), gates.unsqueeze(1)
        weights = self._reader.original(place)
        cast = self._cast(weights, self._source.network.compute_dtype)
        expected = run_expert(self._math(self._source.network, layer), expert, cast, inputs) * gates
        self.expert_tokens[place] = len(rows)
        return _Beside(weights=weights, rows=rows, inputs=inputs, gates=gates, expected=expected)

    def _run_expert(
        self, place: Place, change: ExpertChange | None, passes: Sequence[_Pass], beside: _Beside | None
    ) -> None:
        """Add an expert, changed or not, to passes; weigh it, where that is not done, beside the source's."""
        weights = self._reader.released(place) if change is None else change.apply(place, self._reader)
        if beside is not None and change is not None and (place, change) not in self._weight_errors:
            errors = [weight_error(q, w) for q, w in zip(weights, beside.weights, strict=True)]
            self._weight_errors[place, change] = largest(errors)
        networks = {each.stream.network for each in passes} or {self._models.network}
        for network in networks:
            layer, expert = place
            of_layer, cast = self._math(network, layer), self._cast(weights, network.compute_dtype)
            key = (place, change, network.compute_dtype)
            if beside is not None and key not in self._errors:
                inputs = beside.inputs.to(network.compute_dtype)
                output = run_expert(of_layer, expert, cast, inputs) * beside.gates
                self._errors[key] = error_ratio(output - beside.expected, beside.expected)
            for each in passes:
                if each.stream.network is network:
                    rows, gates = each.passed.rows_of(expert)
                    output = run_expert(of_layer, expert, cast, each.passed.inputs_of(expert))
                    each.passed.total.index_add_(0, rows, output * gates.unsqueeze(1))

    def _math(self, network: Network, layer: int) -> ExpertMath:
        """Return what a layer's experts compute beside products, in the source or in the release."""
        if network not in self._maths:
            models = self._models
            weights = models.source if network is models.source_network else models.release
            self._maths[network] = network.expert_math(layer, weights.load, self._device)
        return self._maths[network]

    def _cast(self, weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        return [weight.to(self._device, dtype) for weight in weights]

    def _keep_logprobs(self) -> Tensor:
        """Return the source's log-probabilities of the whole text, which every pass is compared with."""
        head, rows = self._source.head(), range(0, self._source.num_tokens, HEAD_ROWS)
        kept: Tensor | None = None
        for start in rows:
            found = head(slice(start, start + HEAD_ROWS))
            if kept is None:
                kept = self._source.scratch("logprobs", found.shape[1])
            kept[start : start + len(found)] = found
        assert kept is not None
        return kept

    def _finish(self, each: _Pass) -> Found:
        tokens = compare_tokens(self._logprobs.__getitem__, each.stream.head(), self._corpus)
        answers: list[Expectation] | None = []
        if len(self._asked_rows):
            found = each.stream.last_logprobs(self._asked_rows)
            answers = None if found.isnan().any() else likeliest(found)
        return Found(
            weighed=self.weigh(each.damage, each.stream.network),
            tokens=tokens,
            answers=answers,
            num_changed=each.weights.num_changed,
        )


def largest(values: Iterable[float]) -> float:
    """Return the largest of some values, NaN if one of them is."""
    return max(values, key=lambda value: (math.isnan(value), value))
