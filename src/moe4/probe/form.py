"""`moe4-probe.json`: token sequences and, for the token after each, the likeliest ids (docs/probe.md).

Read and checked without torch, so that a check of a server needs none.
"""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from moe4 import __version__
from moe4.checkpoint.index import PROBE_NAME
from moe4.errors import CheckpointError, ProbeError
from moe4.files.own import OwnFile
from moe4.files.regular import read_bytes
from moe4.schema import NotNull, Only, Own
from moe4.strict_json import JsonObject

__all__ = [
    "PROBE_NAME",
    "Expectation",
    "ExpectedAnswers",
    "ProbeSequence",
    "Reach",
    "encode_probe",
    "read_probe",
]

MAKE = "moe4 probe RELEASE makes it"
MAKE_AGAIN = "moe4 probe RELEASE --force makes it again"
FORMAT: Final = "moe4-probe"
VERSION: Final = 1
TOP = 20  # the most that vLLM gives by default (--max-logprobs)
DECIMALS = 6
OPTIONAL = ("source", "bf16")  # expectations beside "released"
LARGEST_COUNT = 1 << 53
LEAST_LOGPROB = -1e9  # what is less likely still is written so: its probability is 0 all the same
MOST_SUM = 1 + TOP * 10**-DECIMALS  # of the probabilities: each log-probability is rounded

Kind = Literal["chat", "tool_call", "tool_result", "text"]
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
LogProbability = Annotated[float, Field(ge=LEAST_LOGPROB, le=0)]


class Expectation(Own):
    """The likeliest next tokens, likeliest first, with their log-probabilities (natural logarithm)."""

    ids: Annotated[list[Count], Field(min_length=1)]
    logprobs: list[LogProbability]

    def faults(self) -> Iterator[str]:
        """Yield what is wrong between ids and log-probabilities."""
        if len(set(self.ids)) != len(self.ids):
            yield f"ids must differ, found {len(set(self.ids))} in {len(self.ids)}"
        if len(self.logprobs) != len(self.ids):
            yield f"logprobs must be as many as ids, found {len(self.logprobs)} and {len(self.ids)}"
        if any(first < second for first, second in itertools.pairwise(self.logprobs)):
            yield "logprobs must be sorted, likeliest first"
        if (total := sum(map(math.exp, self.logprobs))) > MOST_SUM:
            yield f"the probabilities add up to {total:.6f}, which is more than 1"


class ProbeSequence(Own):
    """A sequence of token ids and what is to be expected after its last."""

    kind: Kind
    tokens: Annotated[list[Count], Field(min_length=1)]
    released: Expectation
    source: Annotated[Expectation | None, NotNull] = None
    bf16: Annotated[Expectation | None, NotNull] = None
    """What the released weights give where everything is rounded to bfloat16."""

    @property
    def expectations(self) -> dict[str, Expectation]:
        """Those that are there, by name."""
        found = {name: getattr(self, name) for name in ("released", *OPTIONAL)}
        return {name: expectation for name, expectation in found.items() if expectation is not None}


class Reach(Own):
    """How many (layer, expert) pairs the model has, and how many of them no token of a probe goes to."""

    num_pairs: Count
    num_unreached: Count


class Computed(Own):
    """What `released` was computed with."""

    dtype: Literal["float32"] = "float32"
    weights: Literal["released"] = "released"


class ExpectedAnswers(Own):
    """What a probe file holds, in the order of its fields."""

    format: Annotated[str, Only((FORMAT,), "this is not a file of expected answers")] = FORMAT
    version: Literal[1] = VERSION
    moe4_version: str = __version__
    model_type: str
    top: Annotated[int, Field(ge=1, le=TOP)] = TOP
    """How many ids an expectation lists."""
    computed: Computed = Computed()
    experts: Reach
    remarks: list[str] = Field(default_factory=list)
    """What is missing or replaced, and why, a sentence each."""
    sequences: Annotated[list[ProbeSequence], Field(min_length=1)]

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(sequence.tokens) for sequence in self.sequences)

    def faults(self) -> Iterator[str]:
        """Yield expectations that do not list as many ids as they should."""
        for place, sequence in enumerate(self.sequences):
            for name, expectation in sequence.expectations.items():
                if len(expectation.ids) != self.top:
                    yield f"sequences[{place}].{name} must have {self.top} ids, found {len(expectation.ids)}"

    def to_dict(self) -> JsonObject:
        """Return plain JSON types, as the file has them."""
        return self.model_dump(exclude_none=True)


PROBE_FILE = OwnFile(form=ExpectedAnswers, error=ProbeError, remedy=MAKE_AGAIN, writer=("moe4_version",))


def encode_probe(answers: ExpectedAnswers) -> bytes:
    """Return the file's bytes: JSON, with a line for each sequence."""
    data = answers.to_dict()
    sequences = data.pop("sequences")
    lines = json.dumps(data, indent=1, ensure_ascii=False).removesuffix("\n}")
    body = ",\n  ".join(json.dumps(sequence, separators=(",", ":")) for sequence in sequences)
    return f'{lines},\n "sequences": [\n  {body}\n ]\n}}\n'.encode()


def read_probe(path: Path, vocab_size: int | None = None) -> ExpectedAnswers:
    """Read a probe file. Raises ProbeError with one line: what is wrong with it, and what to do."""
    try:
        data = read_bytes(path)
    except CheckpointError as error:
        raise ProbeError(f"{error}; {MAKE}") from None
    answers = PROBE_FILE.decode(data, path)
    if vocab_size is not None:
        _check_vocabulary(answers, vocab_size, path)
    return answers


def _check_vocabulary(answers: ExpectedAnswers, vocab_size: int, path: Path) -> None:
    for place, sequence in enumerate(answers.sequences):
        lists = {"tokens": sequence.tokens}
        lists |= {f"{name}.ids": found.ids for name, found in sequence.expectations.items()}
        for name, ids in lists.items():
            if max(ids) >= vocab_size:
                raise ProbeError(
                    f"{path} is damaged: sequences[{place}].{name} must lie below the vocabulary's size "
                    f"{vocab_size}, found {max(ids)}; {MAKE_AGAIN}"
                )
