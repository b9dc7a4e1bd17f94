"""A mixture-of-experts layer with statistics like a large model's, generated and seeded.

    inputs    correlated (a power-law spectrum), channel gains spread over decades, a few outlier channels
    router    expert loads as skewed as a real router's: from many times the mean down to a handful of tokens
    weights   heavier tails than a normal distribution's

Methods quantize it on one draw of tokens; the layer's output error is taken on another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from fidelity.algorithms import ALGORITHMS, GROUP_SIZE
from fidelity.network import by_expert
from moe4.gptq.hessian import Hessian, shrink
from moe4.gptq.solver import factorize, quantize_gptq
from moe4.recipe import Gptq

HIDDEN, WIDTH, NUM_EXPERTS, TOP_K = 512, 256, 32, 4
NUM_OUTLIERS, OUTLIER_GAIN = 4, 20.0
SKEW = 1.2  # standard deviation of the router's bias, beside logits of 1
POOL_TOKENS = 1024

Expert = tuple[Tensor, Tensor, Tensor]
Quantize = Callable[[Expert, Tensor, Tensor], Expert]
"""(gate, up, down), the expert's tokens [n, hidden], all tokens -> the quantized three, dense."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's weights and how its inputs are drawn."""

    mixing: Tensor
    router: Tensor
    bias: Tensor
    experts: list[Expert]

    @classmethod
    def make(cls, seed: int) -> "Layer":
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        def weight(rows: int, columns: int) -> Tensor:
            tails = (normal(rows, columns).square() + normal(rows, columns).square()).div(2).sqrt()
            return normal(rows, columns) / tails.clamp_min(0.4) / columns**0.5

        spectrum = torch.arange(1, HIDDEN + 1).float().pow(-0.5)
        gains = torch.exp(0.5 * normal(HIDDEN))
        gains[torch.randperm(HIDDEN, generator=generator)[:NUM_OUTLIERS]] *= OUTLIER_GAIN
        mixing = spectrum[:, None] * torch.linalg.qr(normal(HIDDEN, HIDDEN)).Q * HIDDEN**0.5 * gains
        experts = [
            (weight(WIDTH, HIDDEN), weight(WIDTH, HIDDEN), weight(HIDDEN, WIDTH)) for _ in range(NUM_EXPERTS)
        ]
        return cls(mixing, normal(HIDDEN, NUM_EXPERTS) / HIDDEN**0.5, SKEW * normal(NUM_EXPERTS), experts)

    def draw(self, num_tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (x [tokens, hidden], ids, gates [tokens, top_k])."""
        latent = torch.randn(num_tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))
        x = latent @ self.mixing
        x = x / x.square().mean(dim=1, keepdim=True).sqrt()
        scores, ids = (latent @ self.router + self.bias).topk(TOP_K, dim=1)
        return x, ids, scores.sigmoid() / scores.sigmoid().sum(dim=1, keepdim=True)


def run_expert(expert: Expert, x: Tensor) -> Tensor:
    gate, up, down = expert
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def by_algorithm(name: str) -> Quantize:
    """Return an algorithm of algorithms.py on the expert's own tokens; round to nearest where it has none."""
    solve = ALGORITHMS[name].solve if name else None

    def quantize(expert: Expert, x: Tensor, everything: Tensor) -> Expert:
        chosen = solve if len(x) and solve else ALGORITHMS["rtn"].solve
        gate, up, down = expert
        inner = silu(x @ gate.T) * (x @ up.T)
        H, inner_H = (2 / max(1, len(x)) * tokens.T @ tokens for tokens in (x, inner))
        return chosen(gate, H), chosen(up, H), chosen(down, inner_H)

    return quantize


def on_all_tokens(expert: Expert, x: Tensor, everything: Tensor) -> Expert:
    """Plain GPTQ with every token sent to every expert."""
    return by_algorithm("gptq")(expert, everything, everything)


def moe4_with(settings: Gptq) -> Quantize:
    """Return moe4's quantizer of one expert, step by step as its stream takes them."""

    def quantize(expert: Expert, x: Tensor, everything: Tensor) -> Expert:
        def mean(tokens: Tensor) -> Tensor:
            hessian = Hessian(tokens.shape[1])
            hessian.add(tokens)
            return hessian.mean()

        def solve(matrices: list[Tensor], own: Tensor, pooled: Tensor) -> list[Tensor]:
            H = shrink(own, len(x), pooled, settings.shrinkage_tokens)
            found = quantize_gptq(matrices, factorize(H, settings), GROUP_SIZE, settings)
            return [result.dequantize() for result in found]

        gate, up = solve(list(expert[:2]), mean(x), mean(everything))
        pool = everything[:: max(1, len(everything) // POOL_TOKENS)][:POOL_TOKENS]
        own, pooled = (mean(silu(t @ gate.T) * (t @ up.T)) for t in (x, pool))
        (down,) = solve([expert[2]], own, pooled)
        return gate, up, down

    return quantize


@torch.inference_mode()
def compare(methods: dict[str, Quantize], seed: int, calibration_tokens: int, test_tokens: int) -> dict:
    """Return per method the layer's relative output error, and those of its cold and hot experts."""
    layer = Layer.make(seed)
    x, ids, gates = layer.draw(calibration_tokens, seed + 1000)
    tests, test_ids, test_gates = layer.draw(test_tokens, seed + 2000)
    own = {expert: rows for expert, rows, _ in by_expert(ids, gates, NUM_EXPERTS)}
    loads = torch.tensor([len(own[expert]) for expert in range(NUM_EXPERTS)])
    cold = set(loads.argsort()[: NUM_EXPERTS // 4].tolist())
    result = {"loads": {"least": int(loads.min()), "median": int(loads.median()), "most": int(loads.max())}}
    for name, quantize in methods.items():
        quantized = [quantize(layer.experts[e], x[own[e]], x) for e in range(NUM_EXPERTS)]
        whole, lost = torch.zeros(test_tokens, HIDDEN), torch.zeros(test_tokens, HIDDEN)
        errors: dict[bool, list[float]] = {True: [], False: []}
        for expert, rows, g in by_expert(test_ids, test_gates, NUM_EXPERTS):
            if not len(rows):
                continue
            exact = run_expert(layer.experts[expert], tests[rows])
            difference = run_expert(quantized[expert], tests[rows]) - exact
            whole.index_add_(0, rows, exact * g[:, None])
            lost.index_add_(0, rows, difference * g[:, None])
            errors[expert in cold].append(float(difference.square().sum() / exact.square().sum()))
        result[name] = {
            "output_error": float(lost.square().sum() / whole.square().sum()),
            "cold_experts": sum(errors[True]) / len(errors[True]),
            "other_experts": sum(errors[False]) / len(errors[False]),
        }
    return result
