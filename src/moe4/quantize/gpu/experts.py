"""Experts of one shape, a batch at a time: `layer/host_solver.py` with the arithmetic of `gptq/gpu`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moe4.errors import CalibrationError
from moe4.forward.device import forward_mode
from moe4.gptq.gpu.products import add_gram_
from moe4.gptq.gpu.solver import BatchSolver
from moe4.gptq.hessian import shares
from moe4.gptq.solver import QuantizedMatrix
from moe4.model.experts import ExpertMath
from moe4.model.names import Part
from moe4.model.outline import ExpertShape
from moe4.quantize.gpu.batch_size import batch_size
from moe4.quantize.layer.workbench import Results

PIECE_TOKENS = 16384


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertTask:
    """One expert: its weights and its tokens."""

    expert: int
    decode: Callable[[Part], Tensor]
    """Gives a weight, float32 [out, in], on the device."""
    read: Callable[[int, int], Tensor]
    """Gives its tokens from one number to another, [tokens, hidden] on the device."""
    gates: Tensor
    """float32 [tokens], on the device."""

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield where pieces of its tokens begin and end."""
        for start in range(0, len(self.gates), PIECE_TOKENS):
            yield start, min(start + PIECE_TOKENS, len(self.gates))


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertQuantizer:
    """What all experts of a layer share.

    Every batch is solved at its full size, the last one filled up with copies, so that no product's shape,
    and with it the order of its sums, depends on how many experts there are or which rank has them.
    """

    solver: BatchSolver
    shape: ExpertShape
    pooled: Tensor
    """The Hessian of all the layer's tokens, float32 [hidden, hidden]."""
    pool: Tensor
    """Some of the layer's tokens, [tokens, hidden] in the compute dtype."""
    math: ExpertMath

    def quantize(self, tasks: list[ExpertTask]) -> list[tuple[Results, Tensor]]:
        """Return each expert's matrices, and its output for its tokens, [tokens, hidden].

        The output is that of the quantized expert, in the dtype of `pool`. Peak memory: `BatchSolver`'s, and
        the experts' inner states and outputs.
        """
        stage, shape = self.solver.stage, self.shape
        with forward_mode():
            with stage("read weights"):
                W = self._stack(tasks, shape.first_parts)
            with stage("Hessians"):
                H = W.new_empty(len(W), shape.hidden_size, shape.hidden_size)
                for number, task in enumerate(tasks):
                    pieces = (task.read(*piece) for piece in task.pieces())
                    self._hessian(H[number], pieces, task, self.pooled)
                self._fill_up(H, len(tasks))
                self._check_finite(H)
            found = self.solver.quantize(W, H, [shape.width] * len(shape.first_parts))
            del W, H
            with stage("read weights"):
                W = self._stack(tasks, ("down",))
            H = W.new_empty(len(W), shape.width, shape.width)
            inner = []
            for number, (task, first) in enumerate(zip(tasks, found, strict=False)):
                with stage("run experts"):
                    weights = [self._served(matrix).T for matrix in first]
                    states = [self._inner(task, task.read(*piece), weights) for piece in task.pieces()]
                    pooled_states = self._inner(task, self.pool, weights)
                with stage("Hessians"):
                    pooled = add_gram_(torch.zeros_like(H[number]), pooled_states).mul_(2.0 / len(self.pool))
                    self._hessian(H[number], iter(states), task, pooled)
                inner.append(states)
            self._fill_up(H, len(tasks))
            self._check_finite(H)
            downs = self.solver.quantize(W, H, [shape.hidden_size])
            del W, H
            results: list[tuple[Results, Tensor]] = []
            with stage("run experts"):
                for task, first, (down,), states in zip(tasks, found, downs, inner, strict=False):
                    weight = self._served(down).T
                    empty = self.pool.new_empty(0, shape.hidden_size)
                    outputs = [self.math.output(task.expert, piece @ weight) for piece in states]
                    output = torch.cat(outputs) if outputs else empty
                    matrices = dict(zip(shape.parts, (*first, down), strict=True))
                    results.append((matrices, output))
        return results

    def _stack(self, tasks: list[ExpertTask], parts: tuple[Part, ...]) -> Tensor:
        """Return the weights transposed, [batch, in, out], the parts of an expert beside each other."""
        rows, columns = self.shape.weight_shape(parts[0])
        size = batch_size(self.shape)
        W = torch.empty(size, columns, rows * len(parts), device=self.pooled.device, dtype=torch.float32)
        for number, task in enumerate(tasks):
            for place, part in enumerate(parts):
                W[number, :, place * rows : (place + 1) * rows] = task.decode(part).T
        self._fill_up(W, len(tasks))
        return W

    def _fill_up(self, batch: Tensor, count: int) -> None:
        batch[count:] = batch[0]

    def _check_finite(self, H: Tensor) -> None:
        if not torch.isfinite(H.diagonal(dim1=1, dim2=2)).all():
            raise CalibrationError("calibration activations hold NaN or Inf")

    def _hessian(self, H: Tensor, pieces: Iterator[Tensor], task: ExpertTask, pooled: Tensor) -> None:
        """Put the Hessian of an expert's tokens, shrunk toward the pool's, into H."""
        settings, num_tokens = self.solver.settings, len(task.gates)
        weight, squares = float(num_tokens), None
        if settings.hessian_weighting == "gate":
            squares = task.gates.square()
            weight = float(squares.sum())
        own, others = shares(num_tokens, settings.shrinkage_tokens)
        torch.mul(pooled, others, out=H)
        for (start, stop), x in zip(task.pieces(), pieces, strict=True):
            piece_weights = None if squares is None else squares[start:stop]
            add_gram_(H, x, piece_weights, alpha=2.0 * own / weight if weight else 0.0)

    def _served(self, matrix: QuantizedMatrix) -> Tensor:
        return matrix.dequantize().to(self.pool.dtype)

    def _inner(self, task: ExpertTask, x: Tensor, weights: list[Tensor]) -> Tensor:
        return self.math.inner(task.expert, [x @ weight for weight in weights])
