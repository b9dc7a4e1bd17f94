"""The release's expected answers, computed from the weights that pass through a run (docs/probe.md).

Forward passes of the released and of the source's weights go through each layer while it is at hand. Rank 0
has their hidden states; every rank runs the experts that it quantizes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from moe4.calibration.tokenizer import load_tokenizer
from moe4.checkpoint.packed import dequantize, unpack
from moe4.checkpoint.shard import tensor_bytes
from moe4.checkpoint.source import Checkpoint
from moe4.config import ModelConfig
from moe4.errors import CalibrationError, ProbeError
from moe4.files.durable import write_file
from moe4.forward.weights import Weights
from moe4.gptq.solver import QuantizedMatrix
from moe4.model.architecture import Network
from moe4.model.names import Part
from moe4.model.outline import ExpertShape, Outline
from moe4.probe.passes import ROUNDED, ProbePasses, join_prefixes
from moe4.probe.sequences import Chosen, choose_sequences
from moe4.quantize.reporting.saved import SavedProbe
from moe4.quantize.transfer.device_memory import to_device
from moe4.quantize.transfer.ranks import Parcel, Ranks
from moe4.quantize.transfer.reader import Stored

MODELS = ("released", "source")
PASSES = (*MODELS, ROUNDED)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbePrompts:
    """A model's probe sequences, or the reason why it has none."""

    chosen: list[Chosen] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    reason: str | None = None

    @property
    def num_tokens(self) -> int:
        """How many tokens are run; a sequence that begins another one is run with it."""
        whole, _ = join_prefixes([sequence.tokens for sequence in self.chosen])
        return sum(len(tokens) for tokens in whole)

    def digest(self) -> str | None:
        """Return a SHA-256 over the sequences; None if there are none."""
        if not self.chosen:
            return None
        return hashlib.sha256(json.dumps([sequence.tokens for sequence in self.chosen]).encode()).hexdigest()


def find_prompts(source: Path, network: Outline, *, trust_remote_code: bool) -> ProbePrompts:
    """Choose the sequences by the source's tokenizer; where it cannot be loaded a release has no probe."""
    try:
        tokenizer = load_tokenizer(source, network.config, trust_remote_code=trust_remote_code)
        chosen, remarks = choose_sequences(tokenizer, int(network.config.vocab_size))
    except (CalibrationError, ProbeError) as error:
        return ProbePrompts(reason=str(error))
    return ProbePrompts(chosen=chosen, remarks=remarks)


class RunningProbe:
    """The passes of one run. For each layer, on every rank: `attend`, `run_expert` for its own experts.

    On rank 0 also `add_expert` for all experts, in their order, and `finish_layer`. `stored` and `released`
    are filled before a layer is attended.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        network: Outline,
        ranks: Ranks,
        device: torch.device,
        work: Path,
        chosen: list[Chosen],
    ) -> None:
        self._most_row_bytes = network.state_width * torch.float32.itemsize * len(PASSES)
        self._checkpoint, self._ranks, self._device, self._work = checkpoint, ranks, device, work
        self.stored: dict[str, Stored] = {}
        """What has been read of the layer at hand, beside routed experts, so that it is not read again."""
        self.released: dict[str, Tensor] = {}
        """What the release holds of the layer's quantized Linears: `weight_packed` and `weight_scale`."""
        self._tokens = [sequence.tokens for sequence in chosen]
        self._begun: ProbePasses | None = None
        self._num_unreached = 0

    def path(self, layer: int) -> Path:
        """Return where a layer's inputs lie, [tokens, hidden] of each of PASSES in its dtype."""
        return self._work / f"probe-{layer:05d}.bin"

    @property
    def most_bytes(self) -> int:
        """How many bytes a layer's inputs have at most: where no sequence begins another one."""
        return self._most_row_bytes * sum(map(len, self._tokens))

    def attend(self, layer: int) -> None:
        """Run a layer without its routed experts on rank 0, and tell the others what these are to do."""
        if self._begun is None:
            self._begun = self._begin(layer)
        if self._ranks.is_first:
            self._passes.attend(layer)
            self._num_unreached = self._passes.num_unreached()
        routing = self._ranks.share(Parcel(tensors=self._passes.routing())).tensors
        if not self._ranks.is_first:
            self._passes.follow(layer, routing)
        self.stored.clear()
        self.released.clear()

    def run_expert(
        self,
        experts: ExpertShape,
        expert: int,
        stored: dict[Part, Stored],
        results: dict[Part, QuantizedMatrix],
    ) -> dict[str, Tensor]:
        """Return what an expert adds to its tokens in both models, for `add_expert`.

        stored: its weights as the source has them; results: as the release will.
        """
        parts = experts.parts
        quantized = [results[part].dequantize() for part in parts]
        original = [self.decode(experts.weight_name(expert, part), stored[part]).float() for part in parts]
        rounded = [weight.to(torch.bfloat16) for weight in quantized]
        return {
            f"probe-{name}": self._passes.run(name, expert, weights)
            for name, weights in zip(PASSES, (quantized, original, rounded), strict=True)
        }

    def add_expert(self, expert: int, tensors: dict[str, Tensor]) -> None:
        """Take out of `tensors` what `run_expert` put there, and add it to the expert's tokens."""
        for name in PASSES:
            self._passes.add(name, expert, tensors.pop(f"probe-{name}"))

    def finish_layer(self, *, is_last: bool) -> SavedProbe:
        """End a layer on rank 0; return what its record says: after the last one the answers."""
        self._passes.finish_layer()
        if not is_last:
            return SavedProbe(num_unreached=self._num_unreached)
        expected = {name: self._passes.expectations(name) for name in PASSES}
        return SavedProbe(num_unreached=self._num_unreached, expected=expected)

    def persist(self, layer: int, *, behind: bool) -> Callable[[], str]:
        """Return what makes a layer's inputs durable and gives their SHA-256.

        behind: whether that is called while the layer is run; then they are copied now.
        """
        hidden = [self._passes.streams[name].hidden for name in PASSES]
        if behind:
            hidden = [values.clone() for values in hidden]

        def write() -> str:
            data = b"".join(tensor_bytes(values) for values in hidden)
            write_file(self.path(layer), data, self._work)
            return hashlib.sha256(data).hexdigest()

        return write

    def decode(self, name: str, stored: Stored) -> Tensor:
        """Return a weight of the source on the device, float32 if it was quantized."""
        return self._checkpoint.decode(name, tuple(to_device(piece, self._device) for piece in stored))

    def read(self, name: str) -> Stored:
        """Return a tensor of the layer at hand as it is stored in the source."""
        if name not in self.stored:
            self.stored[name] = self._checkpoint.read(name)
        return self.stored[name]

    def iterate_rows(self, name: str) -> Iterator[Tensor]:
        """Yield a matrix of the source's, some whole rows at a time."""
        return self._checkpoint.iterate_rows(name)

    def is_encoded(self, name: str) -> bool:
        """Say whether a tensor is quantized in the source; a release that has it plain has it in BF16."""
        return self._checkpoint.is_encoded(name)

    @property
    def config(self) -> ModelConfig:
        """The source's config."""
        return self._checkpoint.config

    @property
    def _passes(self) -> ProbePasses:
        assert self._begun is not None
        return self._begun

    def _begin(self, layer: int) -> ProbePasses:
        """Return passes that stand before a layer: the tokens are embedded, or its inputs read."""
        network = Network(self._checkpoint.config, torch.float32, self._checkpoint.specs)
        weights: dict[str, Weights] = {
            name: _RunWeights(self, name == "released") for name in MODELS if self._ranks.is_first
        }
        passes = ProbePasses(weights, network, self._tokens, self._work, self._device)
        if not self._ranks.is_first:
            return passes
        if layer == 0:
            passes.embed()
            return passes
        with self.path(layer).open("rb") as file:
            for name in PASSES:
                hidden = passes.streams[name].hidden
                values = torch.frombuffer(bytearray(file.read(hidden.nbytes)), dtype=hidden.dtype)
                hidden.copy_(values.view(hidden.shape))
        return passes


class _RunWeights:
    """One of the two models' weights beside routed experts, as `moe4.forward.weights.Weights`."""

    def __init__(self, probe: RunningProbe, is_released: bool) -> None:
        self._probe, self._is_released = probe, is_released
        self.config = probe.config

    def load(self, name: str) -> Tensor:
        """Return a weight as the source or the release has it."""
        base, released = name.removesuffix("weight"), self._probe.released
        if self._is_released and f"{base}weight_packed" in released:
            return dequantize(unpack(released[f"{base}weight_packed"]), released[f"{base}weight_scale"])
        return self._as_stored(name, self._probe.decode(name, self._probe.read(name)))

    def iterate_rows(self, name: str) -> Iterator[Tensor]:
        """Yield a matrix [rows, columns], some whole rows at a time, as `load` gives it."""
        for rows in self._probe.iterate_rows(name):
            yield self._as_stored(name, rows)

    def _as_stored(self, name: str, tensor: Tensor) -> Tensor:
        rounds = self._is_released and self._probe.is_encoded(name)
        return tensor.to(torch.bfloat16) if rounds else tensor
