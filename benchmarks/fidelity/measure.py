"""What quantization cost: KL divergence and agreement with BF16 on held-out text, errors weighted by H."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fidelity.network import Network, Weights
from fidelity.texts import Sequences


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tokens and its standard error, with documents as the independent draws."""

    mean: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """Sums per document [documents]: KL(BF16 || quantized) in nats, equal most likely tokens, tokens."""

    kl: Tensor
    agreed: Tensor
    tokens: Tensor

    def mean_kl(self) -> Estimate:
        return _ratio(self.kl, self.tokens)

    def agreement(self) -> Estimate:
        return _ratio(self.agreed, self.tokens)

    def kl_ratio(self, other: "Divergence") -> Estimate:
        """Return this KL over the other's on the same documents, paired (the delta method)."""
        ratio = float(self.kl.sum() / other.kl.sum())
        rest = self.kl - ratio * other.kl
        return Estimate(ratio, _error_of_sum(rest) / float(other.kl.sum()))


class HeldOut:
    """Held-out text with the unquantized network's log-probabilities and Hessians on it."""

    def __init__(self, network: Network, sequences: Sequences) -> None:
        self._network, self._sequences = network, sequences
        self._documents = torch.cat([torch.full((len(s),), n) for n, s in enumerate(sequences)])
        self.hessians: Weights = {}
        network.set_experts(network.original)
        for layer in network.moe_layers:
            network.experts(layer).fidelity_observer = self._observe(layer)
        self._expected = network.log_probabilities(sequences)
        for layer in network.moe_layers:
            del network.experts(layer).fidelity_observer

    @property
    def num_tokens(self) -> int:
        return len(self._documents)

    def measure(self, weights: Weights) -> Divergence:
        """Run the network with quantized experts, teacher-forced."""
        self._network.set_experts(weights)
        found = self._network.log_probabilities(self._sequences)
        kl = torch.cat(
            [
                (p.exp() * (p - q)).sum(dim=1).double()
                for p, q in zip(self._expected.split(4096), found.split(4096), strict=True)
            ]
        )
        agreed = (self._expected.argmax(dim=1) == found.argmax(dim=1)).double()
        return Divergence(self._by_document(kl), self._by_document(agreed), self._by_document(kl**0))

    def matrix_errors(self, weights: Weights) -> dict[str, float]:
        """Return tr(D H D^T) / tr(W H W^T) of every expert matrix, H from the unquantized network."""
        errors = {}
        for name, H in self.hessians.items():
            W = self._network.original[name]
            D = W - weights[name]
            errors[name] = float(((D @ H) * D).sum() / ((W @ H) * W).sum())
        return errors

    def _observe(self, layer: int):  # type: ignore[no-untyped-def]
        def observer(expert: int, x: Tensor, inner: Tensor) -> None:
            for part, tokens in (("gate", x), ("down", inner)):
                name = self._network.expert_name(layer, expert, part)
                self.hessians[name] = self.hessians.get(name, 0) + tokens.T @ tokens
            up = self._network.expert_name(layer, expert, "up")
            self.hessians[up] = self.hessians[self._network.expert_name(layer, expert, "gate")]

        return observer

    def _by_document(self, values: Tensor) -> Tensor:
        sums = torch.zeros(len(self._sequences), dtype=torch.float64)
        return sums.index_add_(0, self._documents, values)


def _ratio(sums: Tensor, tokens: Tensor) -> Estimate:
    mean = float(sums.sum() / tokens.sum())
    return Estimate(mean, _error_of_sum(sums - mean * tokens) / float(tokens.sum()))


def _error_of_sum(values: Tensor) -> float:
    """Return the standard error of a sum of independent values that sum to zero."""
    n = len(values)
    return float((values.square().sum() * n / (n - 1)).sqrt())
