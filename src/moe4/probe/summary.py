"""The figures that describe a file of expected answers."""

import statistics
from collections import Counter

from moe4.probe.form import ExpectedAnswers, Reach
from moe4.schema import Own, given


class ProbeSummary(Own):
    """The figures that describe a file; num_same_as_source: None where it has no answers of the source."""

    num_sequences: int
    kinds: dict[str, int]
    num_tokens: int
    shortest: int
    longest: int
    experts: Reach
    median_likeliest_logprob: float
    remarks: list[str]
    num_same_as_source: int | None = None

    def __str__(self) -> str:
        return describe(self)


def summarize(answers: ExpectedAnswers) -> ProbeSummary:
    """Return the figures that describe a file."""
    sequences = answers.sequences
    lengths = [len(sequence.tokens) for sequence in sequences]
    pairs = [(sequence.source, sequence.released) for sequence in sequences]
    same = [source.ids[0] == released.ids[0] for source, released in pairs if source is not None]
    return ProbeSummary(
        num_sequences=len(sequences),
        kinds=dict(Counter(sequence.kind for sequence in sequences)),
        num_tokens=sum(lengths),
        shortest=min(lengths),
        longest=max(lengths),
        experts=answers.experts,
        median_likeliest_logprob=statistics.median(sequence.released.logprobs[0] for sequence in sequences),
        remarks=answers.remarks,
        **given(num_same_as_source=sum(same) if same else None),
    )


def describe(result: ProbeSummary) -> str:
    """Return the figures in a few lines."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in result.kinds.items())
    reached = result.experts.num_pairs - result.experts.num_unreached
    lines = [
        f"sequences {result.num_sequences} ({kinds}), {result.num_tokens} tokens, "
        f"{result.shortest} to {result.longest} each",
        f"experts   {reached} of {result.experts.num_pairs} (layer, expert) pairs are reached by some token",
    ]
    if result.num_same_as_source is not None:
        lines.append(
            f"source    has the same likeliest token after {result.num_same_as_source} of "
            f"{result.num_sequences} sequences"
        )
    lines += [f"remark    {remark}" for remark in result.remarks]
    return "\n".join(lines)
