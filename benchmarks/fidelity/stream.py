"""Quantize k2-tiny's experts layer by layer with an algorithm of algorithms.py, in float32."""

import torch
from torch import Tensor
from torch.nn.functional import silu

from fidelity.algorithms import Algorithm, round_to_nearest
from fidelity.network import Network, Weights, by_expert, make_batches
from fidelity.texts import Sequences


@torch.inference_mode()
def quantize_experts(network: Network, algorithm: Algorithm, calibration: Sequences) -> Weights:
    """Return every expert's dense quantized weights; leaves them in the network.

    A layer is calibrated on the outputs of the quantized layers before it. gate and up share the Hessian of
    the tokens routed to the expert; down's comes from the same pass, before gate and up are quantized.
    """
    result: Weights = {}
    if not algorithm.needs_tokens:
        for name, W in network.original.items():
            if ".mlp.experts." in name:
                result[name] = algorithm.solve(W, torch.eye(W.shape[1]))
        network.set_experts(result)
        return result
    network.set_experts(network.original)
    batches = make_batches(calibration, network.device)
    hidden = network.embed(calibration)
    for layer in range(len(network.model.model.layers)):
        output = network.run_layer(layer, hidden, batches)
        if isinstance(output, tuple):
            output = _quantize_layer(network, algorithm, layer, *output, result)
        hidden = output
    return result


def _quantize_layer(
    network: Network,
    algorithm: Algorithm,
    layer: int,
    total: Tensor,
    inputs: Tensor,
    ids: Tensor,
    gates: Tensor,
    result: Weights,
) -> Tensor:
    """Quantize one layer's experts into `result`; return the layer's output."""
    for expert, rows, g in by_expert(ids, gates, network.config.n_routed_experts):
        names = [network.expert_name(layer, expert, part) for part in ("gate", "up", "down")]
        gate, up, down = (network.original[name] for name in names)
        x = inputs[rows]
        inner = silu(x @ gate.T) * (x @ up.T)
        quantized = [_solve(algorithm, W, tokens) for W, tokens in ((gate, x), (up, x), (down, inner))]
        result.update(zip(names, quantized, strict=True))
        inner = silu(x @ quantized[0].T) * (x @ quantized[1].T)
        total.index_add_(0, rows, inner @ quantized[2].T * g[:, None])
    network.set_experts(result, [layer])
    return total


def _solve(algorithm: Algorithm, W: Tensor, tokens: Tensor) -> Tensor:
    if not tokens.shape[0]:
        return round_to_nearest(W, torch.eye(W.shape[1]))
    return algorithm.solve(W, 2 / tokens.shape[0] * tokens.T @ tokens)
