"""Greedy answers of two servers beside each other: which tokens differ, and whether that is a tie."""

import json
import urllib.request
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A completion's token ids and, at each, the gap between the two likeliest tokens' log-probabilities."""

    tokens: list[int]
    gaps: list[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Where an answer first differs from its twin's, and the twin's gap there."""

    prompt: int
    position: int
    gap: float


def ask(url: str, model: str, prompts: list[list[int]], max_tokens: int) -> list[Answer]:
    """Return the greedy completions of prompts given as token ids, asked in one request."""
    body = {
        "model": model,
        "prompt": prompts,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "logprobs": 2,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,  # two tokens may read the same
    }
    request = urllib.request.Request(
        f"{url}/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        choices = sorted(json.load(response)["choices"], key=lambda choice: choice["index"])
    return [_answer(choice) for choice in choices]


def _answer(choice: dict[str, Any]) -> Answer:
    gaps = []
    for likeliest in choice["logprobs"]["top_logprobs"]:
        first, second = sorted(likeliest.values(), reverse=True)[:2]
        gaps.append(first - second)
    return Answer(tokens=choice["token_ids"], gaps=gaps)


def compare(answers: list[Answer], twins: list[Answer]) -> tuple[list[Difference], list[float]]:
    """Return the answers that differ, and how far gaps lie apart at the positions before a difference."""
    differences, apart = [], []
    for number, (answer, twin) in enumerate(zip(answers, twins, strict=True)):
        pairs = zip(answer.tokens, twin.tokens, strict=False)
        same = next(
            (at for at, (a, b) in enumerate(pairs) if a != b), min(len(answer.tokens), len(twin.tokens))
        )
        apart += [abs(a - b) for a, b in zip(answer.gaps[:same], twin.gaps[:same], strict=True)]
        if answer.tokens != twin.tokens:
            gap = twin.gaps[same] if same < len(twin.gaps) else answer.gaps[same]
            differences.append(Difference(prompt=number, position=same, gap=gap))
    return differences, apart
