"""Run models over the probe's sequences side by side, layer by layer.

In float32 the release, and its source where that is at hand; and the release once more in bfloat16, which
tells how far rounding alone moves this model's answers.

Whoever has a layer's experts at hand gives them: `moe4 probe` reads them for this, `moe4 quantize` has them
anyway.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from moe4.forward.layer import Routes
from moe4.forward.stream import LayerPass, Stream, run_expert
from moe4.forward.weights import Weights
from moe4.machine.at_once import PROBE_BATCH_TOKENS
from moe4.model.architecture import Network
from moe4.model.experts import ExpertMath
from moe4.model.names import PARTS
from moe4.probe.form import DECIMALS, LEAST_LOGPROB, TOP, Expectation

ROUNDED = "bf16"  # the pass in bfloat16, and its name in the file


class ProbePasses:
    """Forward passes by name ("released", "source", ROUNDED) over the same sequences.

    For each layer call `attend`, then for each expert `run` and `add` of each model, then `finish_layer`.
    """

    def __init__(
        self,
        models: dict[str, Weights],
        network: Network,
        sequences: Sequence[Sequence[int]],
        work: Path,
        device: torch.device,
    ) -> None:
        """Prepare the passes. `network` computes in float32.

        work: folder for hidden states; on a GPU they stay there.
        """
        assert network.compute_dtype is torch.float32
        self.network = network
        whole, self._last_rows = join_prefixes(sequences)
        passes = {name: (weights, network) for name, weights in models.items()}
        if "released" in models:
            passes[ROUNDED] = (models["released"], network.in_dtype(torch.bfloat16))
        self.streams = {
            name: Stream(
                weights,
                skeleton,
                whole,
                work if device.type == "cpu" else None,
                device,
                prefix=f"probe-{name}-",
                batch_tokens=PROBE_BATCH_TOKENS,
            )
            for name, (weights, skeleton) in passes.items()
        }
        self._layer = -1
        self._passed: dict[str, LayerPass] = {}
        self._maths: dict[str, ExpertMath] = {}

    def embed(self) -> None:
        """Begin with the tokens' embeddings."""
        for stream in self.streams.values():
            stream.embed()

    def attend(self, layer: int) -> None:
        """Run a layer of every model without its routed experts."""
        self._layer = layer
        self._passed = {name: stream.attend(layer) for name, stream in self.streams.items()}
        routed = self.streams if self.network.experts[layer] is not None else {}
        self._maths = {name: stream.expert_math(layer) for name, stream in routed.items()}

    def run(self, name: str, expert: int, weights: Sequence[Tensor]) -> Tensor:
        """Return float32 [its tokens, hidden]: what an expert adds to a model's tokens, gates included.

        weights: the expert's, in the order of its parts, on the device, in the pass's dtype.
        """
        passed = self._passed[name]
        _, gates = passed.rows_of(expert)
        inputs = passed.inputs_of(expert)
        return run_expert(self._maths[name], expert, weights, inputs) * gates.unsqueeze(1)

    def add(self, name: str, expert: int, output: Tensor) -> None:
        """Add what `run` returned to its tokens."""
        passed = self._passed[name]
        rows, _ = passed.rows_of(expert)
        passed.total.index_add_(0, rows, output)

    def routing(self) -> dict[str, Tensor]:
        """Return what `run` needs to know of this layer, for another process; empty for a dense layer."""
        tensors = {}
        for name, passed in self._passed.items():
            routes = passed.routes
            if routes is None:
                continue
            assert passed.inputs is not None
            tensors[f"{name}-inputs"] = passed.inputs
            tensors[f"{name}-rows"], tensors[f"{name}-gates"] = routes.rows, routes.gates
            if routes.inputs is not routes.rows:
                tensors[f"{name}-numbers"] = routes.inputs
            tensors[f"{name}-starts"] = torch.tensor(routes.starts, dtype=torch.int64)
            biases = self._maths[name].biases
            tensors.update({f"{name}-{part}_bias": bias for part, bias in biases.items()})
        return tensors

    def follow(self, layer: int, routing: dict[str, Tensor]) -> None:
        """Let `run` work as it does in the process that `routing` comes from."""
        self._layer = layer
        self._passed = {
            key.removesuffix("-starts"): LayerPass(
                total=torch.empty(0, dtype=torch.float32),
                inputs=routing[key.replace("-starts", "-inputs")],
                routes=Routes(
                    rows=routing[key.replace("-starts", "-rows")],
                    inputs=routing.get(
                        key.replace("-starts", "-numbers"), routing[key.replace("-starts", "-rows")]
                    ),
                    gates=routing[key.replace("-starts", "-gates")],
                    starts=starts.tolist(),
                ),
            )
            for key, starts in routing.items()
            if key.endswith("-starts")
        }
        plain = self.network.plain_math(layer) if self._passed else None
        self._maths = {
            name: replace(
                plain,
                biases={
                    part: routing[f"{name}-{part}_bias"] for part in PARTS if f"{name}-{part}_bias" in routing
                },
            )
            for name in self._passed
            if plain is not None
        }

    def finish_layer(self) -> None:
        """Let the layer's output be the next layer's input. Raises EvaluationError on NaN or Inf."""
        for name, stream in self.streams.items():
            stream.finish_layer(self._passed[name])
        self._passed = {}

    def num_unreached(self) -> int:
        """Return how many experts of this layer no token of the release goes to; before `finish_layer`."""
        experts, ids = self.network.experts[self._layer], self._passed["released"].ids
        if experts is None or ids is None:
            return 0
        return experts.num_experts - int(torch.unique(ids[ids < experts.num_experts]).numel())

    def expectations(self, name: str) -> list[Expectation]:
        """Return what one model expects after each sequence; after the last layer."""
        return likeliest(self.streams[name].last_logprobs(self._last_rows))


def likeliest(logprobs: Tensor) -> list[Expectation]:
    """Return the likeliest ids of each row of log-probabilities [rows, vocabulary], as in the file."""
    # Equal log-probabilities stay in the order of their ids.
    values, ids = torch.sort(logprobs.clamp(min=LEAST_LOGPROB), dim=1, descending=True, stable=True)
    top = min(TOP, logprobs.shape[1])
    return [
        Expectation(
            ids=row_ids[:top].tolist(),
            logprobs=[round(value, DECIMALS) + 0.0 for value in row[:top].tolist()],
        )
        for row_ids, row in zip(ids, values, strict=True)
    ]


def join_prefixes(sequences: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], Tensor]:
    """Return the sequences that begin no other one, and the row of each given sequence's last token in them.

    Under causal attention a sequence that begins another is run with it.
    """
    order = sorted(range(len(sequences)), key=lambda number: list(sequences[number]))
    whole: list[Sequence[int]] = []
    owners = [0] * len(sequences)
    following: Sequence[int] = []
    for number in reversed(order):  # what begins another one comes just before one that it begins
        tokens = sequences[number]
        if list(following[: len(tokens)]) != list(tokens):
            whole.append(tokens)
        owners[number], following = len(whole) - 1, tokens
    starts = torch.tensor([0, *(len(tokens) for tokens in whole)], dtype=torch.int64).cumsum(0)
    lengths = torch.tensor([len(tokens) for tokens in sequences], dtype=torch.int64)
    return whole, starts[torch.tensor(owners, dtype=torch.int64)] + lengths - 1


def count_pairs(network: Network) -> int:
    """Return how many (layer, expert) pairs a model has."""
    return sum(shape.num_experts for shape in network.experts if shape is not None)
