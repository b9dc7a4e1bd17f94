"""What quantization cost on held-out text: KL divergence, likeliest tokens, experts, answers' likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fidelity.network import Answer, Network, Weights, make_batches
from fidelity.texts import HeldOutDocument

LIKELIEST = 5


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tokens and its standard error, with documents as the independent draws."""

    mean: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """Sums over each document's tokens, float64 [documents] on the CPU.

    kl: KL(source || release) in nats. agreed: equal most likely tokens. overlap: share of the source's five
    likeliest tokens that are among the release's. experts: share of the MoE layers in which a token is sent
    to the same set of experts; last_experts: the same, 0 or 1, in the last of them. tokens: their number.
    answer_before, answer_after: log-likelihood, in nats, of the tokens of the reference's answers under the
    source and under the release. answer_tokens: their number.
    """

    kl: Tensor
    agreed: Tensor
    overlap: Tensor
    experts: Tensor
    last_experts: Tensor
    tokens: Tensor
    answer_before: Tensor
    answer_after: Tensor
    answer_tokens: Tensor

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
    """Held-out documents with what the unquantized network answers on them.

    Holds a float32 of the vocabulary for each token, on the network's device.
    """

    def __init__(self, network: Network, documents: Sequence[HeldOutDocument]) -> None:
        self._network, self._num_documents = network, len(documents)
        self.sequences = [document.ids for document in documents]
        lengths = torch.tensor([len(sequence) for sequence in self.sequences])
        self._document = torch.arange(len(documents)).repeat_interleave(lengths).to(network.device)
        # What a position predicts is the token after it; the last of a document predicts none.
        following = [(*each.ids[1:], 0) for each in documents]
        expected = [(*each.is_answer[1:], False) for each in documents]
        self._next = torch.tensor([token for row in following for token in row], device=network.device)
        self._is_answer = torch.tensor([mark for row in expected for mark in row], device=network.device)
        self._batches = make_batches(self.sequences, network.device)
        network.set_experts(network.original)
        self._source = [network.answer(batch) for batch in self._batches]

    @property
    def num_tokens(self) -> int:
        return len(self._document)

    def measure(self, weights: Weights) -> Divergence:
        """Run the network with quantized experts, teacher-forced; leaves them in the network."""
        self._network.set_experts(weights)
        sums = {
            field.name: torch.zeros(self._num_documents, dtype=torch.float64, device=self._network.device)
            for field in fields(Divergence)
        }
        for batch, source in zip(self._batches, self._source, strict=True):
            found = self._compare(source, self._network.answer(batch), batch.rows)
            for name, values in found.items():
                sums[name].index_add_(0, self._document[batch.rows], values.double())
        return Divergence(**{name: values.cpu() for name, values in sums.items()})

    def _compare(self, source: Answer, release: Answer, rows: Tensor) -> dict[str, Tensor]:
        """Return each field of `Divergence` for each token of a batch."""
        p, q = source.log_probabilities, release.log_probabilities
        likeliest = p.topk(LIKELIEST).indices, q.topk(LIKELIEST).indices
        both = (likeliest[0][:, :, None] == likeliest[1][:, None, :]).any(dim=2)
        unchanged = (source.chosen == release.chosen).all(dim=2)
        following, is_answer = self._next[rows, None], self._is_answer[rows]
        return {
            "kl": (p.exp() * (p - q)).sum(dim=1),
            "agreed": p.argmax(dim=1) == q.argmax(dim=1),
            "overlap": both.double().mean(dim=1),
            "experts": unchanged.double().mean(dim=0),
            "last_experts": unchanged[-1],
            "tokens": torch.ones_like(rows),
            "answer_before": p.gather(1, following)[:, 0] * is_answer,
            "answer_after": q.gather(1, following)[:, 0] * is_answer,
            "answer_tokens": is_answer,
        }


class Hessians:
    """x x^T, summed over held-out tokens, of every expert matrix in the unquantized network."""

    def __init__(self, network: Network, sequences: Sequence[list[int]]) -> None:
        self._network = network
        self._sums: Weights = {}
        network.set_experts(network.original)
        for layer in network.moe_layers:
            network.experts(layer).fidelity_observer = self._observe(layer)
        for batch in make_batches(list(sequences), network.device):
            network.answer(batch)
        for layer in network.moe_layers:
            del network.experts(layer).fidelity_observer

    def matrix_errors(self, weights: Weights) -> dict[str, float]:
        """Return tr(D H D^T) / tr(W H W^T) of every expert matrix."""
        errors = {}
        for name, H in self._sums.items():
            W = self._network.original[name]
            D = W - weights[name].to(W.device)
            errors[name] = float(((D @ H) * D).sum() / ((W @ H) * W).sum())
        return errors

    def _observe(self, layer: int):  # type: ignore[no-untyped-def]
        def observer(expert: int, x: Tensor, inner: Tensor) -> None:
            for part, tokens in (("gate", x), ("down", inner)):
                name = self._network.expert_name(layer, expert, part)
                self._sums[name] = self._sums.get(name, 0) + tokens.T @ tokens
            up = self._network.expert_name(layer, expert, "up")
            self._sums[up] = self._sums[self._network.expert_name(layer, expert, "gate")]

        return observer


def _ratio(sums: Tensor, tokens: Tensor) -> Estimate:
    mean = float(sums.sum() / tokens.sum())
    return Estimate(mean, _error_of_sum(sums - mean * tokens) / float(tokens.sum()))


def _error_of_sum(values: Tensor) -> float:
    """Return the standard error of a sum of independent values that sum to zero."""
    n = len(values)
    return float((values.square().sum() * n / (n - 1)).sqrt())
