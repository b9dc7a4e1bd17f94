"""`moe4-probe.json`: token sequences and, for the token after each, the likeliest ids (docs/probe.md).

Read and checked without torch, so that a check of a server needs none.
"""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from moe4 import __version__
from moe4.checkpoint.files import read_bytes
from moe4.checkpoint.index import PROBE_NAME
from moe4.errors import CheckpointError, ProbeError
from moe4.strict_json import parse_json

__all__ = [
    "KINDS",
    "PROBE_NAME",
    "Expectation",
    "ExpectedAnswers",
    "ProbeSequence",
    "Reach",
    "encode_probe",
    "find_problems",
    "read_probe",
]

FORMAT, VERSION = "moe4-probe", 1
TOP = 20  # the most that vLLM gives by default (--max-logprobs)
DECIMALS = 6
OPTIONAL = ("source", "bf16")  # expectations beside "released"
LARGEST_COUNT = 1 << 53
KINDS = ("chat", "tool_call", "tool_result", "text")
MOST_SUM = 1 + TOP * 10**-DECIMALS  # of the probabilities: each log-probability is rounded


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectation:
    """The likeliest next tokens, likeliest first, with their log-probabilities (natural logarithm)."""

    ids: list[int]
    logprobs: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"ids": self.ids, "logprobs": self.logprobs}


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSequence:
    """A sequence of token ids and what is to be expected after its last. `kind` is one of KINDS."""

    kind: str
    tokens: list[int]
    released: Expectation
    source: Expectation | None = None
    bf16: Expectation | None = None
    """What the released weights give where everything is rounded to bfloat16."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        data: dict[str, Any] = {"kind": self.kind, "tokens": self.tokens, "released": self.released.to_dict()}
        for name in OPTIONAL:
            expectation: Expectation | None = getattr(self, name)
            if expectation is not None:
                data[name] = expectation.to_dict()
        return data


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """How many (layer, expert) pairs the model has, and how many of them no token of a probe goes to."""

    num_pairs: int
    num_unreached: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedAnswers:
    """What a probe file holds."""

    model_type: str
    sequences: list[ProbeSequence]
    experts: Reach
    remarks: list[str] = field(default_factory=list)
    """What is missing or replaced, and why, a sentence each."""
    top: int = TOP
    moe4_version: str = __version__

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(sequence.tokens) for sequence in self.sequences)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, as the file has them."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "moe4_version": self.moe4_version,
            "model_type": self.model_type,
            "top": self.top,
            "computed": {"dtype": "float32", "weights": "released"},
            "experts": {"num_pairs": self.experts.num_pairs, "num_unreached": self.experts.num_unreached},
            "remarks": self.remarks,
            "sequences": [sequence.to_dict() for sequence in self.sequences],
        }


def encode_probe(answers: ExpectedAnswers) -> bytes:
    """Return the file's bytes: JSON, with a line for each sequence."""
    data = answers.to_dict()
    sequences = data.pop("sequences")
    lines = json.dumps(data, indent=1, ensure_ascii=False).removesuffix("\n}")
    body = ",\n  ".join(json.dumps(sequence, separators=(",", ":")) for sequence in sequences)
    return f'{lines},\n "sequences": [\n  {body}\n ]\n}}\n'.encode()


def read_probe(path: Path, vocab_size: int | None = None) -> ExpectedAnswers:
    """Read a probe file. Raises ProbeError with the first thing that is wrong with it."""
    try:
        data = parse_json(read_bytes(path))
    except CheckpointError as error:
        raise ProbeError(f"{error}; moe4 probe RELEASE makes it") from None
    except ValueError as error:
        raise ProbeError(f"{path} is not JSON: {error}; moe4 probe RELEASE --force makes it again") from None
    problem = next(find_problems(data, vocab_size), None)
    if problem is not None:
        raise ProbeError(f"{path}: {problem}; moe4 probe RELEASE --force makes it again")
    return ExpectedAnswers(
        model_type=data["model_type"],
        sequences=[
            ProbeSequence(
                kind=item["kind"],
                tokens=item["tokens"],
                released=Expectation(**item["released"]),
                **{name: Expectation(**item[name]) for name in OPTIONAL if name in item},
            )
            for item in data["sequences"]
        ],
        experts=Reach(**data["experts"]),
        remarks=data["remarks"],
        top=data["top"],
        moe4_version=data["moe4_version"],
    )


def find_problems(data: Any, vocab_size: int | None = None) -> Iterator[str]:
    """Yield what is wrong with a probe file's content; nothing if it is as docs/probe.md says."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        yield f'expected an object whose "format" is "{FORMAT}"'
        return
    if data.get("version") != VERSION:
        yield f'"version" must be {VERSION}, found {data.get("version")!r}; another version of moe4 reads it'
        return
    for key in ("moe4_version", "model_type"):
        if not isinstance(data.get(key), str):
            yield f'"{key}" must be a string, found {data.get(key)!r}'
    top = data.get("top")
    if not _is_count(top) or not 1 <= top <= TOP:
        yield f'"top" must be a number from 1 to {TOP}, found {top!r}'
        return
    experts, remarks = data.get("experts"), data.get("remarks")
    if not isinstance(experts, dict) or set(experts) != {"num_pairs", "num_unreached"}:
        yield f'"experts" must hold "num_pairs" and "num_unreached", found {experts!r}'
    elif not all(map(_is_count, experts.values())):
        yield f'"experts" must hold numbers of 0 or more, found {experts!r}'
    if not isinstance(remarks, list) or not all(isinstance(remark, str) for remark in remarks):
        yield f'"remarks" must be a list of strings, found {remarks!r}'
    sequences = data.get("sequences")
    if not isinstance(sequences, list) or not sequences:
        yield '"sequences" must be a list that is not empty'
        return
    for number, sequence in enumerate(sequences):
        for problem in _sequence_problems(sequence, top, vocab_size):
            yield f"sequence {number}: {problem}"


def _sequence_problems(sequence: Any, top: int, vocab_size: int | None) -> Iterator[str]:
    if not isinstance(sequence, dict) or not {"kind", "tokens", "released"} <= set(sequence):
        yield 'expected an object with "kind", "tokens" and "released"'
        return
    if sequence["kind"] not in KINDS:
        yield f'"kind" must be one of {", ".join(KINDS)}, found {sequence["kind"]!r}'
    problem = _id_problem(sequence["tokens"], vocab_size)
    if problem:
        yield f'"tokens" {problem}'
    for name in ("released", *OPTIONAL):
        if name in sequence:
            for problem in _expectation_problems(sequence[name], top, vocab_size):
                yield f'"{name}" {problem}'


def _expectation_problems(entry: Any, top: int, vocab_size: int | None) -> Iterator[str]:
    if not isinstance(entry, dict) or set(entry) != {"ids", "logprobs"}:
        yield 'must be an object with "ids" and "logprobs"'
        return
    ids, logprobs = entry["ids"], entry["logprobs"]
    problem = _id_problem(ids, vocab_size)
    if problem:
        yield f"has ids that {problem}"
    elif len(ids) != top or len(set(ids)) != top:
        yield f"must have {top} different ids, found {len(set(ids))} in {len(ids)}"
    if not isinstance(logprobs, list) or not all(map(_is_number, logprobs)):
        yield "has log-probabilities that are not finite numbers"
    elif len(logprobs) != top:
        yield f"must have {top} log-probabilities, found {len(logprobs)}"
    elif any(first < second for first, second in itertools.pairwise(logprobs)):
        yield "has log-probabilities that are not sorted, likeliest first"
    elif logprobs[0] > 0:
        yield f"has a log-probability above 0: {logprobs[0]}"
    elif sum(map(math.exp, logprobs)) > MOST_SUM:
        yield f"has probabilities that add up to {sum(map(math.exp, logprobs)):.6f}, which is more than 1"


def _id_problem(ids: Any, vocab_size: int | None) -> str | None:
    if not isinstance(ids, list) or not ids or not all(map(_is_count, ids)):
        return "must be a list of token ids that is not empty"
    if vocab_size is not None and max(ids) >= vocab_size:
        return f"must lie below the vocabulary's size {vocab_size}, found {max(ids)}"
    return None


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT


def _is_number(value: Any) -> bool:
    # A float holds the whole numbers up to here; math.isfinite raises where an integer is too large for one.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -LARGEST_COUNT <= value <= LARGEST_COUNT
