"""Tokens per second of an OpenAI-compatible server, by streamed completions of prompts given as token ids."""

import json
import random
import statistics
import time
import urllib.request
from typing import Any

FIRST_ID, LAST_ID = 20, 2560  # inside k2-tiny's vocabulary, past its special tokens


def random_prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Return prompts of random token ids; another seed shares no prefix."""
    rng = random.Random(seed)
    return [[rng.randrange(FIRST_ID, LAST_ID) for _ in range(length)] for _ in range(count)]


def stream(url: str, model: str, prompts: list[list[int]], new_tokens: int) -> list[float]:
    """Ask for a completion of each prompt in one request; return when each piece came.

    url: ends with /v1. Times are in seconds from the start. The server sends a piece a token and prompt,
    unless several were ready at once.
    """
    body = {
        "model": model,
        "prompt": prompts,
        "max_tokens": new_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"{url}/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    times: list[float] = []
    last = b""
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as response:
        for line in response:
            if line.startswith(b"data: {"):
                times.append(time.perf_counter() - began)
                last = line
    usage = json.loads(last[len(b"data: ") :])["usage"]
    expected = len(prompts) * new_tokens
    if usage["completion_tokens"] != expected:
        raise ValueError(f"expected {expected} tokens, found {usage['completion_tokens']}")
    return times[:-1]  # the last one carries the usage alone


def measure_decode(url: str, model: str, batch: int, new_tokens: int, seed: int) -> dict[str, Any]:
    """Return the seconds of a step of decoding `batch` prompts of 16 tokens, and its tokens per second.

    The step is timed between the median piece of the second token and that of the last: all prompts are
    decoded together from there on.
    """
    times = stream(url, model, random_prompts(batch, 16, seed), new_tokens)
    rounds = [times[start : start + batch] for start in range(0, len(times), batch)]
    if len(times) == batch * new_tokens:
        first, last, steps = statistics.median(rounds[1]), statistics.median(rounds[-1]), new_tokens - 2
    else:  # pieces held several tokens: count from the first to the last
        first, last, steps = times[0], times[-1], new_tokens - 1
    seconds = (last - first) / steps
    return {"step_seconds": seconds, "tokens_per_second": batch / seconds}


def measure_prefill(url: str, model: str, count: int, length: int, seed: int) -> float:
    """Return the tokens per second at which `count` prompts of `length` tokens are read."""
    times = stream(url, model, random_prompts(count, length, seed), 1)
    return count * length / times[-1]
