"""A forward pass over a text, one decoder layer at a time, experts apart: for models too large for memory.

Hidden states lie in mapped files, or where they are few on the device; in memory are one layer without its
experts, one expert and a batch.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from moe4.calibration.activations import ResidentActivations, make_batches
from moe4.errors import EvaluationError
from moe4.forward.device import forward_mode
from moe4.forward.layer import LayerForward, Routes, in_token_order, input_rows, sort_by_expert
from moe4.forward.weights import Weights, gather_rows
from moe4.machine.at_once import BATCH_TOKENS
from moe4.model.architecture import Network
from moe4.model.experts import ExpertMath
from moe4.model.outline import ExpertShape

HEAD_ROWS = 256  # tokens whose logits are in memory at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPass:
    """What a layer did before its routed experts. All but `total` is None for a dense layer.

    total: float32, to which experts are added: the layer's output without them [tokens, state_width], or
        zero [tokens, hidden] where their sum goes through more of the layer.
    inputs: of the experts, [tokens * inputs_per_token, hidden] in the compute dtype.
    ids: int64 [tokens, top_k].
    """

    total: Tensor
    inputs: Tensor | None = None
    ids: Tensor | None = None
    routes: Routes | None = None

    def rows_of(self, expert: int) -> tuple[Tensor, Tensor]:
        """Return (token numbers, gate weights) of one expert."""
        assert self.routes is not None
        return self.routes.of_expert(expert)

    def inputs_of(self, expert: int) -> Tensor:
        """Return the inputs of one expert, [its tokens, hidden], in the order of `rows_of`."""
        assert self.routes is not None
        assert self.inputs is not None
        return self.inputs[self.routes.inputs_of(expert)]


class Stream:
    """One model's pass over sequences of token ids, from layer to layer.

    work: folder for hidden states; several streams share one if their `prefix` differs. None keeps them on
        the device.
    batch_tokens: how many tokens run through a layer at once.
    may_fail: whether NaN and Inf may stand in hidden states and answers; by default they are an error.
    """

    def __init__(
        self,
        weights: Weights,
        network: Network,
        sequences: Sequence[Sequence[int]],
        work: Path | None,
        device: torch.device,
        *,
        prefix: str = "",
        batch_tokens: int = BATCH_TOKENS,
        may_fail: bool = False,
    ) -> None:
        self.weights, self.network, self._device = weights, network, device
        self._may_fail = may_fail
        self._work, self._prefix = work, prefix
        self._place = device if work is None else torch.device("cpu")
        self._tokens = torch.tensor(
            [token for sequence in sequences for token in sequence], dtype=torch.int64
        )
        lengths = [len(sequence) for sequence in sequences]
        self.num_tokens = sum(lengths)
        self._size = network.state_width
        self._batches = list(make_batches(lengths, batch_tokens))
        self.hidden = self._map("hidden", network.compute_dtype, self._size)
        self._forward: LayerForward | None = None
        self._completed: Tensor | None = None

    def embed(self) -> None:
        """Let the tokens' embeddings be the first layer's input."""
        embeddings = gather_rows(self.weights, self.network.embedding_name, self._tokens)
        self.hidden.copy_(self.network.begin(embeddings))

    def build_layer(self, layer: int) -> nn.Module:
        """Return a decoder layer without its experts, for `attend`."""
        return self.network.build_layer(layer, self.weights.load, self._device)

    def attend(self, layer: int, module: nn.Module | None = None) -> LayerPass:
        """Run a layer without its experts. What it returns is valid until the next layer.

        module: the layer as `build_layer` gives it, here or to another pass of the same weights and network.
        """
        module = module or self.build_layer(layer)
        hidden = ResidentActivations(self.hidden)
        forward = LayerForward(self.network, layer, module, hidden, self._tokens, self._device)
        shape = self.network.experts[layer]
        if shape is None:
            total = self._map("total", torch.float32, self._size)
            for batch in self._batches:
                total[batch.token_rows.to(self._place)] = forward.run(batch).float().to(self._place)
            return LayerPass(total=total)
        adds = forward.adds_experts
        self._forward = None if adds else forward
        total = self._map("total", torch.float32, self._size if adds else shape.hidden_size).zero_()
        inputs = self._map(
            "inputs", self.network.compute_dtype, shape.inputs_per_token * shape.hidden_size
        ).view(-1, shape.hidden_size)
        chosen: list[tuple[Tensor, Tensor, Tensor]] = []
        for batch in self._batches:
            rows, found = batch.token_rows.to(self._place), forward.attend(batch)
            if adds:
                total[rows] = found.output.float().to(self._place)
            inputs[input_rows(rows, shape)] = found.inputs.to(self._place)
            chosen.append((rows, found.ids.to(self._place), found.gates.to(self._place)))
        ids, gates = in_token_order(chosen)
        routes = sort_by_expert(ids, gates, shape)
        return LayerPass(total=total, inputs=inputs, ids=ids, routes=routes)

    def follow(self, other: "Stream", passed: LayerPass) -> LayerPass:
        """Take over what another pass has, up to this layer's experts; return what is this pass's own of it.

        It is valid until the other pass finishes the layer.
        """
        self.hidden.copy_(other.hidden)
        self._forward = other._forward
        total = self._map("total", torch.float32, passed.total.shape[1])
        return replace(passed, total=total.copy_(passed.total))

    def complete(self, output: LayerPass) -> Tensor:
        """Return the layer's output, float32 [tokens, state_width], once its experts are added."""
        if self._forward is None:
            return output.total
        if self._completed is None:
            self._completed = self._map("completed", torch.float32, self._size)
            for batch in self._batches:
                rows = batch.token_rows.to(self._place)
                found = self._forward.complete(batch, output.total[rows])
                self._completed[rows] = found.float().to(self._place)
        return self._completed

    def finish_layer(self, output: LayerPass) -> None:
        """Let the layer's output, experts included, be the next layer's input."""
        total = self.complete(output)
        if not self._may_fail and not torch.isfinite(total).all():
            raise EvaluationError("hidden states hold NaN or Inf; is the checkpoint damaged?")
        self.hidden.copy_(total)
        self._forward = self._completed = None

    def run_layer(self, layer: int) -> None:
        """Run a whole layer, so that its output is the next layer's input."""
        passed = self.attend(layer)
        self.add_experts(layer, passed)
        self.finish_layer(passed)

    def add_experts(self, layer: int, passed: LayerPass) -> None:
        """Run a layer's routed experts, one after another, and add what they give to the layer's `total`."""
        shape = self.network.experts[layer]
        math = self.expert_math(layer) if shape else None
        for expert in range(shape.num_experts if shape else 0):
            assert shape is not None
            assert math is not None
            rows, gates = passed.rows_of(expert)
            output = run_expert(math, expert, self.load_expert(shape, expert), passed.inputs_of(expert))
            passed.total.index_add_(0, rows, output * gates.unsqueeze(1))

    def expert_math(self, layer: int) -> ExpertMath:
        """Return what a layer's experts compute beside products."""
        return self.network.expert_math(layer, self.weights.load, self._device)

    def load_expert(self, experts: ExpertShape, expert: int) -> list[Tensor]:
        """Return one expert's weights in the order of its parts, in the compute dtype."""
        return [
            self.weights.load(name).to(self._device, self.network.compute_dtype)
            for name in experts.weight_names(expert)
        ]

    def head(self) -> Callable[[slice | Tensor], Tensor]:
        """Return a function that gives log-probabilities, float32 [rows, vocabulary], of rows of tokens."""
        ending = self.network.build_ending(self.weights.load, self._device)
        weight = self.weights.load(self.network.head_name).to(self._device, self.network.compute_dtype)
        bias = self._head_bias()

        def log_probabilities(rows: slice | Tensor) -> Tensor:
            with forward_mode():
                logits = ending(self.hidden[rows].to(self._device)) @ weight.T
                logits = self.network.finish_logits(logits if bias is None else logits + bias)
                return torch.log_softmax(self._checked(logits).float(), dim=-1)

        return log_probabilities

    def last_logprobs(self, rows: Tensor) -> Tensor:
        """Return log-probabilities, float64 [rows, vocabulary] on the CPU, of a few rows of tokens.

        The head is read some rows at a time, so memory is that of the result.
        """
        ending, bias, first = self.network.build_ending(self.weights.load, self._device), self._head_bias(), 0
        logits = []
        with forward_mode():
            states = ending(self.hidden[rows.to(self._place)].to(self._device))
            for piece in self.weights.iterate_rows(self.network.head_name):
                product = states @ piece.to(self._device, self.network.compute_dtype).T
                if bias is not None:
                    product += bias[first : first + len(piece)]
                first += len(piece)
                logits.append(self.network.finish_logits(product).double().cpu())
        return torch.log_softmax(self._checked(torch.cat(logits, dim=1)), dim=-1)

    def _head_bias(self) -> Tensor | None:
        name = self.network.names.head_bias
        if name is None:
            return None
        return self.weights.load(name).to(self._device, self.network.compute_dtype)

    def _checked(self, logits: Tensor) -> Tensor:
        """Return the logits. Raises EvaluationError on NaN or Inf."""
        if not self._may_fail and not torch.isfinite(logits).all():
            raise EvaluationError(
                "the model's answers hold NaN or Inf; is its last norm or head damaged, or its dtype too "
                "narrow?"
            )
        return logits

    def keep(self, name: str, values: Tensor) -> Tensor:
        """Return a copy of values [tokens or a multiple, width], in a file of that name."""
        width = values.numel() // self.num_tokens
        return self._map(name, values.dtype, width).view(values.shape).copy_(values)

    def scratch(self, name: str, width: int) -> Tensor:
        """Return zeros, float32 [tokens, width], in a file of that name."""
        return self._map(name, torch.float32, width).zero_()

    def _map(self, name: str, dtype: torch.dtype, width: int) -> Tensor:
        """Return a tensor [tokens, width] that is a file, or lies on the device."""
        if self._work is None:
            return torch.empty(self.num_tokens, width, dtype=dtype, device=self._device)
        path, num_values = self._work / f"{self._prefix}{name}", self.num_tokens * width
        with path.open("ab") as file:  # room is reserved now, so that a full disk is an OSError
            os.posix_fallocate(file.fileno(), 0, num_values * dtype.itemsize)
        flat = torch.from_file(str(path), shared=True, size=num_values, dtype=dtype)
        return flat.view(self.num_tokens, width)


def run_expert(math: ExpertMath, expert: int, weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Return float32 [tokens, hidden], where the inputs lie: an expert's output, before its gate weight."""
    with forward_mode():
        output = math.run(expert, inputs.to(weights[0].device), weights)
        return output.float().to(inputs.device)
