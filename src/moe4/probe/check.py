#!/usr/bin/env python3
"""Ask a running server for a release's expected answers and say PASS or FAIL.

    python check.py RELEASE http://127.0.0.1:8000 [--model NAME] [--json]

RELEASE is a folder with moe4-probe.json, or that file. The server needs the plain completions API:
`prompt` as token ids, `logprobs`, and vLLM's `return_tokens_as_token_ids`. An API key is taken from
VLLM_API_KEY. Exit code 0: PASS; 1: FAIL; 2: the server could not be asked.

This file needs Python 3.8 and nothing else, and is whole: `moe4 probe --print-script` prints it, and
`moe4 probe RELEASE --url URL` runs it. What is measured, and why the bounds are what they are, is in
docs/probe-check.md of moe4.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple, TypedDict

PROBE_NAME = "moe4-probe.json"
FORMAT, VERSION = "moe4-probe", 1
TOKEN_PREFIX = "token_id:"  # vLLM's way to write a token by its id
NUM_ALONE = 4  # sequences asked one at a time, before the others are asked together
WORKERS = 16
FEWEST = 24  # comparisons that a verdict needs
FEWEST_DECODED = 16  # below this, what was decoded is shown and not judged
# Bounds are multiples of what rounding to bfloat16 does to this model's answers, which the file holds.
FACTORS = {"typical": 1.8, "upper": 2.0, "worst": 4.0}
LEAST_NOISE = 0.005  # for a model that bfloat16 hardly moves
BROKEN_SHIFT = 2.0  # a single sequence may move this far
SMALLEST_SHIFT = 1e-6  # what rounding in the file leaves
CLEAR_GAP = 2.0  # nats between a token and one that may not take its place; more where bfloat16 moves more
MOST_WRONG = 0
FLOOR = 1e-9  # of a probability: rounding to 6 decimals leaves no more of it


class CheckError(Exception):
    """The check could not be done: one line that says what is wrong and what to do."""


class LikelyTokens(TypedDict):
    """The likeliest next tokens, likeliest first, with their log-probabilities."""

    ids: list[int]
    logprobs: list[float]


class ExpectedSequence(TypedDict):
    """A sequence, and what follows it by the released weights, in float32 and rounded to bfloat16."""

    tokens: list[int]
    released: LikelyTokens
    bf16: LikelyTokens


class Expected(TypedDict):
    """A probe file, as far as it is read here. top: how many ids an expectation lists."""

    top: int
    sequences: list[ExpectedSequence]


class GroupVerdict(TypedDict):
    """Figures of the shift by name, over `num` comparisons, and the bounds they must keep."""

    name: str
    num: int
    ok: bool
    shift: dict[str, float]
    bounds: dict[str, float]


class FoundDivergence(TypedDict):
    """KL divergence over all comparisons, in nats."""

    mean: float
    worst: float


class Verdict(TypedDict):
    """Whether a server gives what the release holds, and what says so."""

    ok: bool
    groups: list[GroupVerdict]
    wrong_tokens: int
    kl: FoundDivergence
    worst_sequence: int
    num_sequences: int
    num_asked: int
    num_decoded: int


class ServerVerdict(Verdict):
    """The same with the server's address and the model that was asked."""

    url: str
    model: str


class Position(NamedTuple):
    """What a server says of one token: its id, and the log-probabilities it lists, by id."""

    token: int
    listed: dict[int, float]


class Question(NamedTuple):
    """Ask for `max_tokens` after `tokens`, which belong to the sequence of that number."""

    number: int
    tokens: list[int]
    max_tokens: int


class Comparison(NamedTuple):
    """An expectation beside a server's answer; `decoded`: the token came after one the server generated.

    kl: in nats. shift: of log-probabilities, root mean square. best: the server's likeliest token.
    """

    number: int
    decoded: bool
    kl: float
    shift: float
    best: int


def read_expected(path: str) -> Expected:
    """Return the content of a probe file, or of the one in a folder. Raises CheckError."""
    if os.path.isdir(path):
        path = os.path.join(path, PROBE_NAME)
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would have us wait
        raise CheckError(f"{path} is not a regular file")
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise CheckError(f"{path} is not version {VERSION} of the format {FORMAT}")
        for sequence in data["sequences"]:
            if "bf16" not in sequence:
                raise CheckError(f'{path} has no "bf16" answers; moe4 probe RELEASE --force makes it again')
            for found in (sequence["released"], sequence["bf16"]):
                if not sequence["tokens"] or len(found["ids"]) != len(found["logprobs"]):
                    raise ValueError("a sequence without tokens or log-probabilities")
    except OSError as error:
        raise CheckError(f"{path} cannot be read: {error.strerror}; moe4 probe RELEASE makes it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckError(f"{path} is damaged: {error!r}; moe4 probe RELEASE --force makes it again") from None
    expected: Expected = data
    return expected


def is_address(url: str) -> bool:
    """Say whether a URL has a scheme, host and port that a request can be sent to."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        port = parts.port
    except ValueError:  # as UnicodeError is
        return False
    is_plain = url.isprintable() and " " not in url
    return is_plain and parts.scheme in ("http", "https") and bool(host) and port != 0


class Server:
    """An OpenAI-compatible server; `url` with or without /v1."""

    def __init__(
        self, url: str, *, key: str | None = None, timeout: float = 120.0, insecure: bool = False
    ) -> None:
        if not is_address(url):
            raise CheckError(f"{url} is not an address; give one such as http://127.0.0.1:8000")
        base = url.rstrip("/")
        self.url = base if base.endswith("/v1") else base + "/v1"
        self.model = ""
        self.max_model_len: int | None = None
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._context = ssl.create_default_context()
        if insecure:
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE

    def find_model(self, wanted: str | None) -> None:
        """Choose the model to ask: `wanted`, or the first that is served. Raises CheckError."""
        answer = self._send("/models", None)
        try:
            served = {str(entry["id"]): entry for entry in answer["data"]}
        except (KeyError, TypeError):
            raise CheckError(f"{self.url} is not an OpenAI-compatible server: it lists no models") from None
        if not served:
            raise CheckError(f"{self.url} serves no model")
        self.model = wanted or next(iter(served))
        if self.model not in served:
            raise CheckError(f"{self.url} does not serve {self.model}; it serves {', '.join(served)}")
        length = served[self.model].get("max_model_len")
        self.max_model_len = length if isinstance(length, int) else None

    def ask(self, tokens: list[int], max_tokens: int, top: int) -> list[Position]:
        """Return the tokens that follow `tokens`, greedily, with `top` log-probabilities each."""
        body = {
            "model": self.model,
            "prompt": tokens,
            "max_tokens": max_tokens,
            "temperature": 0,
            "logprobs": top,
            "return_tokens_as_token_ids": True,
        }
        answer = self._send("/completions", body)
        try:
            logprobs = answer["choices"][0]["logprobs"]
            if not logprobs or not logprobs.get("top_logprobs"):
                raise CheckError(f"{self.url} answers without log-probabilities; it must support `logprobs`")
            positions = [
                Position(_token_id(token), {_token_id(key): float(value) for key, value in listed.items()})
                for token, listed in zip(logprobs["tokens"], logprobs["top_logprobs"])
            ]
        except (KeyError, TypeError, IndexError, AttributeError, ValueError):
            raise CheckError(f"{self.url} does not answer as the completions API does") from None
        for position in positions:
            if len(position.listed) < top:
                raise CheckError(
                    f"{self.url} lists {len(position.listed)} log-probabilities, {top} are needed: "
                    f"raise its limit (vLLM: --max-logprobs {top})"
                )
            if sum(math.exp(min(value, 1.0)) for value in position.listed.values()) > 1.01:
                raise CheckError(
                    f"{self.url} lists values that are not log-probabilities; vLLM needs --logprobs-mode "
                    "raw_logprobs, its default"
                )
        return positions

    def _send(self, path: str, body: Any) -> dict[str, Any]:
        """Return the answer to a GET, or to a POST of `body`."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=self._headers)
        context = self._context if self.url.startswith("https://") else None
        try:
            with urllib.request.urlopen(request, timeout=self._timeout, context=context) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise CheckError(self._explain(error, path)) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise CheckError(f"no OpenAI-compatible server answers at {self.url}: {reason}") from None
        except (ValueError, RecursionError):
            raise CheckError(f"{self.url}{path} does not answer with JSON") from None
        if not isinstance(answer, dict):
            raise CheckError(f"{self.url}{path} does not answer with a JSON object")
        return answer

    def _explain(self, error: urllib.error.HTTPError, path: str) -> str:
        said = ""
        try:
            said = " ".join(error.read().decode("utf-8", "replace").split())
            content = json.loads(said)
            reason = content.get("error") or content.get("detail") or said
            said = str(reason.get("message", said) if isinstance(reason, dict) else reason)
        except (OSError, http.client.HTTPException, ValueError, AttributeError, RecursionError):
            pass
        hint = ""
        if error.code in (401, 403):
            hint = "; set VLLM_API_KEY to its key"
        elif error.code == 404:
            hint = "; the check needs the plain completions API"
        elif "vocab" in said:
            hint = "; the server's model is not the one the probe was made for"
        elif "logprobs" in said:
            hint = "; the check needs 20 log-probabilities (vLLM: --max-logprobs 20)"
        return f"{self.url}{path} answers {error.code}: {said[:300]}{hint}"


def _token_id(text: str) -> int:
    """Return the id of a token written `token_id:N`. Raises CheckError for plain text."""
    number = text[len(TOKEN_PREFIX) :]
    if not text.startswith(TOKEN_PREFIX) or not number.isdigit():
        raise CheckError(
            f"the server names tokens by their text ({text[:20]!r}), not by id: it must support "
            "`return_tokens_as_token_ids`, as vLLM does"
        )
    return int(number)


def compare(ids: list[int], logprobs: list[float], listed: dict[int, float]) -> tuple[float, float]:
    """Return (KL divergence, RMS difference of log-probabilities) between an expectation and an answer.

    Both list some 20 ids. An id that only one side lists is, on the other, no likelier than the least likely
    it does list: it counts with that, or with the first side's own value where that is lower, which is the
    smallest difference that fits. KL is over the ids that either side lists and one rest, in nats.
    """
    expected = dict(zip(ids, logprobs))
    lowest_expected, lowest_listed = min(logprobs), min(listed.values())
    every = list(expected) + [token for token in listed if token not in expected]
    p = {token: expected.get(token, min(listed.get(token, 0.0), lowest_expected)) for token in every}
    q = {token: listed.get(token, min(expected.get(token, 0.0), lowest_listed)) for token in every}
    shift = math.sqrt(sum((p[token] - q[token]) ** 2 for token in every) / len(every))
    p_mass, p_rest = _masses(p, [token for token in every if token not in expected])
    q_mass, q_rest = _masses(q, [token for token in every if token not in listed])
    pairs = [(p_mass[token], q_mass[token]) for token in every] + [(p_rest, q_rest)]
    kl = sum(ours * math.log((ours + FLOOR) / (theirs + FLOOR)) for ours, theirs in pairs)
    return max(kl, 0.0), shift


def _masses(logprobs: dict[int, float], guessed: list[int]) -> tuple[dict[int, float], float]:
    """Return probabilities and the rest; those that are guessed share what the others leave."""
    mass = {token: math.exp(value) for token, value in logprobs.items()}
    wanted = sum(mass[token] for token in guessed)
    left = max(1.0 - (sum(mass.values()) - wanted), 0.0)
    if wanted > left:
        for token in guessed:
            mass[token] *= left / wanted
        return mass, 0.0
    return mass, left - wanted


def make_questions(expected: Expected, max_model_len: int | None) -> list[Question]:
    """Return what to ask, short sequences first: all, then all without their last token. Raises CheckError.

    The token after a sequence comes out of one pass over the prompt. Asked without its last token, for two,
    a server that generates that token itself gives the one after it out of decoding, and the same
    expectation holds; other answers to these questions are not used.
    """
    lengths = [len(sequence["tokens"]) for sequence in expected["sequences"]]
    fitting = [n for n, length in enumerate(lengths) if max_model_len is None or length < max_model_len]
    if 2 * len(fitting) < len(lengths):
        raise CheckError(
            f"only {len(fitting)} of {len(lengths)} sequences are shorter than the server's max_model_len "
            f"of {max_model_len}"
        )
    fitting.sort(key=lambda n: lengths[n])
    every = [Question(n, expected["sequences"][n]["tokens"], 1) for n in fitting]
    return every + [Question(q.number, q.tokens[:-1], 2) for q in every if len(q.tokens) > 1]


def assess(expected: Expected, question: Question, positions: list[Position]) -> Comparison | None:
    """Compare an answer with what is expected; None if it says nothing of it."""
    sequence = expected["sequences"][question.number]
    decoded = question.max_tokens > 1
    if decoded and (len(positions) < 2 or positions[0].token != sequence["tokens"][-1]):
        return None
    if not positions:
        raise CheckError("the server answers without a token")
    found, listed = sequence["released"], positions[-1].listed
    kl, shift = compare(found["ids"], found["logprobs"], listed)
    best = max(listed, key=lambda token: listed[token])
    return Comparison(question.number, decoded, kl, shift, best)


def collect(
    expected: Expected, server: Server, on_progress: Callable[[int, int], None], seconds: float | None
) -> list[Comparison]:
    """Ask the server and return the comparisons; what is not asked after `seconds` is left out.

    `on_progress` gets (answers, questions). Raises CheckError, also where there was no time for enough.
    """
    questions = make_questions(expected, server.max_model_len)
    top = int(expected["top"])
    end = math.inf if seconds is None else time.monotonic() + seconds

    def ask(question: Question) -> Comparison | None:
        if time.monotonic() > end:
            return None
        return assess(expected, question, server.ask(question.tokens, question.max_tokens, top))

    results = []
    for done, question in enumerate(questions[:NUM_ALONE]):
        results.append(ask(question))
        on_progress(done + 1, len(questions))
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(ask, question) for question in questions[NUM_ALONE:]]
        try:
            for done, future in enumerate(as_completed(futures)):
                results.append(future.result())
                on_progress(NUM_ALONE + done + 1, len(questions))
        finally:
            for future in futures:
                future.cancel()
    comparisons = sorted(comparison for comparison in results if comparison)
    if len(comparisons) < min(FEWEST, len(questions) // 2):
        raise CheckError(f"only {len(comparisons)} answers came within {seconds:g} s; {FEWEST} are needed")
    return comparisons


def summarize(shifts: list[float]) -> dict[str, float]:
    """Return the figures that are judged: `typical`, over all, and `upper`, over the largest third.

    Geometric means: routing that nearly ties moves a few sequences far on a server that is right, and plain
    means would say more of luck than of the server.
    """
    logs = sorted(math.log(max(shift, SMALLEST_SHIFT)) for shift in shifts)
    upper = logs[-max(1, len(logs) // 3) :]
    return {
        "typical": math.exp(sum(logs) / len(logs)),
        "upper": math.exp(sum(upper) / len(upper)),
        "worst": math.exp(logs[-1]),
    }


def judge_group(name: str, comparisons: list[Comparison], noise: list[float]) -> GroupVerdict:
    """Return one group's figures, each beside its bound. noise: what bfloat16 does to each sequence."""
    found = summarize([comparison.shift for comparison in comparisons])
    rounding = summarize([noise[comparison.number] for comparison in comparisons])
    bounds = {figure: FACTORS[figure] * max(rounding[figure], LEAST_NOISE) for figure in FACTORS}
    bounds["worst"] = max(bounds["worst"], BROKEN_SHIFT)
    return {
        "name": name,
        "num": len(comparisons),
        "ok": all(found[figure] <= bounds[figure] for figure in bounds),
        "shift": found,
        "bounds": bounds,
    }


def judge(expected: Expected, comparisons: list[Comparison]) -> Verdict:
    """Return the verdict `ok` with all that led to it."""
    sequences = expected["sequences"]
    noise = [
        compare(
            s["released"]["ids"],
            s["released"]["logprobs"],
            dict(zip(s["bf16"]["ids"], s["bf16"]["logprobs"])),
        )[1]
        for s in sequences
    ]
    prompts = [comparison for comparison in comparisons if not comparison.decoded]
    decoded = [comparison for comparison in comparisons if comparison.decoded]
    groups = [judge_group("prompts", prompts, noise)] if prompts else []
    if len(decoded) >= FEWEST_DECODED:
        groups.append(judge_group("decoded", decoded, noise))
    clear_gap = max(CLEAR_GAP, FACTORS["worst"] * max(noise))
    wrong = [c for c in comparisons if _is_wrong(sequences[c.number]["released"], c.best, clear_gap)]
    worst = max(comparisons, key=lambda comparison: comparison.kl)
    return {
        "ok": all(group["ok"] for group in groups) and len(wrong) <= MOST_WRONG,
        "groups": groups,
        "wrong_tokens": len(wrong),
        "kl": {"mean": sum(c.kl for c in comparisons) / len(comparisons), "worst": worst.kl},
        "worst_sequence": worst.number,
        "num_sequences": len(sequences),
        "num_asked": len(prompts),
        "num_decoded": len(decoded),
    }


def _is_wrong(found: LikelyTokens, best: int, clear_gap: float) -> bool:
    """Say whether `best` is not the token that is expected, and further from it than rounding can explain."""
    logprobs = dict(zip(found["ids"], found["logprobs"]))
    return bool(found["logprobs"][0] - logprobs.get(best, min(found["logprobs"])) > clear_gap)


def describe_shortly(result: Verdict) -> str:
    """Return the figures in one line."""
    parts = []
    for group in result["groups"]:
        figures = ", ".join(
            f"{figure} {group['shift'][figure]:.3g} (bound {group['bounds'][figure]:.3g})"
            for figure in FACTORS
        )
        parts.append(f"{group['num']} {group['name']}: shift {figures}")
    parts.append(f"{result['wrong_tokens']} wrong tokens (bound {MOST_WRONG})")
    return "; ".join(parts)


def describe(result: Verdict) -> str:
    """Return the verdict in two lines; a third says what a failure means."""
    lines = [
        f"probe: {'PASS' if result['ok'] else 'FAIL'}: {describe_shortly(result)}",
        f"       KL divergence, mean {result['kl']['mean']:.1e}, worst {result['kl']['worst']:.1e} nats, in "
        f"sequence {result['worst_sequence']}; asked {result['num_asked']} of {result['num_sequences']} "
        "sequences",
    ]
    if not result["ok"]:
        lines.append(
            "       The server does not compute what the release holds: do not trust its answers. "
            "moe4's docs/probe-check.md explains how to find the cause."
        )
    return "\n".join(lines)


def check(
    expected: Expected,
    server: Server,
    model: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    seconds: float | None = None,
) -> ServerVerdict:
    """Ask `server` for what is expected and return the verdict. Raises CheckError if it cannot be asked."""
    server.find_model(model)
    result = judge(expected, collect(expected, server, on_progress, seconds))
    return {"url": server.url, "model": server.model, **result}


def main(arguments: list[str] | None = None) -> int:
    """Run the check from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Ask a server for a release's expected answers.")
    parser.add_argument("release", help="folder with moe4-probe.json, or that file")
    parser.add_argument("url", help="address of the server, with or without /v1")
    parser.add_argument("--model", help="name of the model; the first served if not given")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds one answer may take")
    parser.add_argument("--insecure", action="store_true", help="do not check the server's certificate")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    try:
        server = Server(
            options.url,
            key=os.environ.get("VLLM_API_KEY"),
            timeout=options.timeout,
            insecure=options.insecure,
        )
        result = check(read_expected(options.release), server, options.model)
    except CheckError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write((json.dumps(result) if options.json else describe(result)) + "\n")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
