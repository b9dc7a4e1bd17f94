"""How far two models' predictions of the same tokens are apart: KL divergence, agreement, perplexity."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe4.calibration.corpus import Corpus
from moe4.errors import EvaluationError
from moe4.evaluate.result_files import Divergence, Perplexity, WorstToken
from moe4.evaluate.statistics import Interval, mean_interval
from moe4.forward.stream import HEAD_ROWS, Stream

WORST_TOKENS = 20
CONTEXT_TOKENS = 16
EARLY_TOKENS = 1024

Head = Callable[[slice], Tensor]
"""Gives log-probabilities, float32 [rows, vocabulary], of rows of tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenResults:
    """Per predicted token, in the order of the text; `rows` tells which token each prediction follows."""

    rows: Tensor
    kl: Tensor
    nll: Tensor
    """[predictions, 2]: source, release."""
    best: Tensor
    """int64 [predictions, 2]: the likeliest token of each."""
    shared_top5: Tensor
    sequence: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens that were predicted."""
        return len(self.kl)

    @property
    def top1_agreement(self) -> float:
        """The share of tokens before which both models have the same likeliest token."""
        return float(self.same_best.mean())

    @property
    def same_best(self) -> Tensor:
        """Whether both models have the same likeliest token: float64 [predictions], 0 or 1."""
        return (self.best[:, 0] == self.best[:, 1]).double()

    @property
    def top5_agreement(self) -> float:
        """The share of the five likeliest tokens that both models have."""
        return float(self.shared_top5.double().mean() / 5)

    def perplexity(self) -> Perplexity:
        """Return both models' perplexities."""
        source, release = self.nll.double().mean(0).exp().tolist()
        return Perplexity(source=source, release=release)

    def divergence(self) -> Divergence:
        """Return the mean with its interval, and quantiles."""
        kl = self.kl.double()
        median, p99 = torch.quantile(kl, torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
        return Divergence(
            mean=float(kl.mean()),
            interval=self.interval(kl).as_list(),
            median=median,
            p99=p99,
            max=float(kl.max()),
        )

    def interval(self, values: Tensor) -> Interval:
        """Return the interval of the mean of float64 values, one for each token.

        It resamples sequences, not tokens, which within a sequence are alike.
        """
        num = int(self.sequence.max()) + 1
        sums = torch.zeros(num, dtype=torch.float64).index_add_(0, self.sequence, values)
        counts = torch.bincount(self.sequence, minlength=num).double()
        return mean_interval(sums.numpy(), counts.numpy())

    def worst(self, corpus: Corpus, tokenizer: Any) -> list[WorstToken]:
        """Return the tokens where the two models differ most, with what stands before them."""
        flat = [token for sequence in corpus.sequences for token in sequence]
        starts = torch.tensor([0, *map(len, corpus.sequences)], dtype=torch.int64).cumsum(0)
        found = []
        for place in self.kl.argsort(descending=True)[:WORST_TOKENS].tolist():
            row, sequence = int(self.rows[place]), int(self.sequence[place])
            begin = max(int(starts[sequence]), row + 1 - CONTEXT_TOKENS)
            words = [[flat[row + 1]], [int(self.best[place, 0])], [int(self.best[place, 1])]]
            token, ours, theirs = (tokenizer.decode(word) for word in words)
            found.append(
                WorstToken(
                    sequence=sequence,
                    kl=float(self.kl[place]),
                    context=tokenizer.decode(flat[begin : row + 1]),
                    token=token,
                    source_best=ours,
                    release_best=theirs,
                    source_probability=float((-self.nll[place, 0]).exp()),
                    release_probability=float((-self.nll[place, 1]).exp()),
                )
            )
        return found


def _owner(corpus: Corpus) -> Tensor:
    """Return the number of each token's sequence."""
    lengths = torch.tensor([len(sequence) for sequence in corpus.sequences], dtype=torch.int64)
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def predicting_rows(corpus: Corpus) -> Tensor:
    """Return the numbers of the tokens that another follows. Raises EvaluationError if there are none."""
    owner = _owner(corpus)
    rows = (owner[1:] == owner[:-1]).nonzero().flatten()
    if not len(rows):
        raise EvaluationError("the text has no token that follows another")
    return rows


def early_kl(before: Stream, after: Stream, predicts: Tensor) -> float:
    """Return the mean KL of what the final norm and the head make of this layer's output.

    Of evenly spaced tokens, at most EARLY_TOKENS; after the last layer it is the models' own KL.
    """
    chosen = predicts[:: -(-len(predicts) // EARLY_TOKENS)]
    heads = before.head(), after.head()
    pieces = [kl_divergence(*(head(rows).cpu() for head in heads)) for rows in torch.split(chosen, HEAD_ROWS)]
    return float(torch.cat(pieces).mean())


def compare_tokens(before: Head, after: Head, corpus: Corpus) -> TokenResults:
    """Compare the predictions of all tokens but each sequence's first, a few hundred at a time.

    before, after: log-probabilities of rows of tokens, as `Stream.head` gives them.
    """
    flat = torch.tensor([token for sequence in corpus.sequences for token in sequence], dtype=torch.int64)
    owner = _owner(corpus)
    predicts = torch.zeros(len(flat), dtype=torch.bool)
    predicts[predicting_rows(corpus)] = True
    pieces: dict[str, list[Tensor]] = {name: [] for name in ("kl", "nll", "best", "shared_top5")}
    for start in range(0, len(flat), HEAD_ROWS):
        rows = slice(start, min(start + HEAD_ROWS, len(flat)))
        keep = predicts[rows]
        if not keep.any():
            continue
        p, q = (head(rows).cpu()[keep] for head in (before, after))
        targets = flat[start + 1 : start + 1 + HEAD_ROWS][keep[: len(flat) - start - 1]]
        pieces["kl"].append(kl_divergence(p, q))
        pieces["nll"].append(
            -torch.stack([p, q], 1).gather(2, targets.view(-1, 1, 1).expand(-1, 2, 1))[..., 0]
        )
        pieces["best"].append(torch.stack([p.argmax(-1), q.argmax(-1)], 1))
        top = [logs.topk(5, dim=-1).indices for logs in (p, q)]
        pieces["shared_top5"].append((top[0].unsqueeze(2) == top[1].unsqueeze(1)).sum((1, 2)))
    joined = {name: torch.cat(parts) for name, parts in pieces.items()}
    return TokenResults(rows=predicts.nonzero().flatten(), sequence=owner[predicts], **joined)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p || q) in nats, float64 [rows], of log-probabilities [rows, vocabulary]."""
    p, q = p.double(), q.double()
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)
