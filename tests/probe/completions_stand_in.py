"""A stand-in for a server with the plain completions API, right about a probe file or wrong in one way."""

import http.server
import json
import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

VOCABULARY = 300
NUM_SEQUENCES = 48
NOISE = 0.05  # of log-probabilities: what bfloat16 does to this model


def make_expected(seed: int = 0) -> dict[str, Any]:
    """Return the content of a probe file for a model that is made up."""
    rng = random.Random(seed)
    sequences = []
    for number in range(NUM_SEQUENCES):
        tokens = [rng.randrange(VOCABULARY) for _ in range(2 + 3 * number)]
        ids = rng.sample(range(VOCABULARY), 20)
        logits = sorted((rng.uniform(-8, 0) for _ in ids), reverse=True)
        total = math.log(1.02 * sum(map(math.exp, logits)))
        released = {"ids": ids, "logprobs": [round(value - total, 6) for value in logits]}
        bf16 = noisy(released, rng, NOISE)
        sequences.append({"kind": "text", "tokens": tokens, "released": released, "bf16": bf16})
    return {
        "format": "moe4-probe",
        "version": 1,
        "moe4_version": "0",
        "model_type": "made_up",
        "top": 20,
        "computed": {"dtype": "float32", "weights": "released"},
        "experts": {"num_pairs": 1, "num_unreached": 0},
        "remarks": [],
        "sequences": sequences,
    }


def noisy(expectation: dict[str, Any], rng: random.Random, size: float) -> dict[str, Any]:
    """Return an expectation with noise in its log-probabilities, normalized and sorted again."""
    moved = [value + rng.gauss(0, size) for value in expectation["logprobs"]]
    before, after = (math.log(sum(map(math.exp, values))) for values in (expectation["logprobs"], moved))
    pairs = sorted(zip(moved, expectation["ids"], strict=True), reverse=True)
    return {
        "ids": [number for _, number in pairs],
        "logprobs": [round(value - after + before, 6) for value, _ in pairs],
    }


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers /v1/models and /v1/completions; `serving` sets the class's values."""

    expected: dict[str, Any]
    fault = ""
    noise = NOISE
    key = ""
    max_model_len = 4096
    asked: list[dict[str, Any]]

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer /v1/models."""
        if not self._denied():
            model = {"id": "tiny", "object": "model", "max_model_len": self.max_model_len}
            self._answer({"object": "list", "data": [] if self.fault == "no models" else [model]})

    def do_POST(self) -> None:
        """Answer /v1/completions as vLLM does."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._denied():
            return
        self.asked.append(body)
        refused = {
            "max_logprobs": "Requested sample logprobs of 20, which is greater than max allowed: 5",
            "vocabulary": "Token id 299 is out of vocabulary",
            "dies": "EngineCore encountered an issue",
        }
        if self.path != "/v1/completions" or self.fault == "no completions":
            self._answer({"detail": "Not Found"}, 404)
        elif self.fault in refused and not (self.fault == "dies" and len(self.asked) < 20):
            self._answer({"error": {"message": refused[self.fault]}}, 500 if self.fault == "dies" else 400)
        elif self.fault == "not the API":
            self._answer({"choices": []})
        else:
            self._answer(self._completion(body))

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        steps = self._steps(body["prompt"])[: body["max_tokens"]]
        write = "word {}".format if self.fault == "text" else "token_id:{}".format
        logprobs = {
            "tokens": [write(token) for token, _ in steps],
            "top_logprobs": [
                {write(number): value for number, value in listed.items()} for _, listed in steps
            ],
        }
        return {"choices": [{"text": "", "logprobs": None if self.fault == "no logprobs" else logprobs}]}

    def _steps(self, prompt: list[int]) -> list[tuple[int, dict[int, float]]]:
        """Return the tokens that follow, with what is listed for each."""
        for sequence in self.expected["sequences"]:
            if prompt == sequence["tokens"]:
                listed = self._listed(sequence, decoded=False)
                return [(next(iter(listed)), listed)]
            if prompt == sequence["tokens"][:-1]:
                last = sequence["tokens"][-1]
                listed = self._listed(sequence, decoded=True)
                anything = self._listed(self.expected["sequences"][0], decoded=False)
                return [(last, anything), (next(iter(listed)), listed)]
        raise AssertionError("a prompt that no sequence has")

    def _listed(self, sequence: dict[str, Any], *, decoded: bool) -> dict[int, float]:
        rng = random.Random(str((sequence["tokens"], decoded)))
        wrong_here = {"decoding": decoded, "wrong": True, "few wrong": len(sequence["tokens"]) > 130}
        size = self.noise * (8 if wrong_here.get(self.fault, False) else 1)
        if self.fault == "few wrong" and size > self.noise:
            return dict(zip(range(20), sequence["released"]["logprobs"], strict=True))
        found = noisy(sequence["released"], rng, size)
        values = [value + 1 for value in found["logprobs"]] if self.fault == "logits" else found["logprobs"]
        listed = dict(zip(found["ids"], values, strict=True))
        return dict(list(listed.items())[:5]) if self.fault == "few" else listed

    def _denied(self) -> bool:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self._answer({"error": "Unauthorized"}, 401)
            return True
        return False

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(http.server.ThreadingHTTPServer):
    """A server that many may ask at once."""

    request_queue_size = 64


@contextmanager
def serving(expected: dict[str, Any], fault: str = "", **values: Any) -> Iterator[str]:
    """Run the server in a thread and yield its address; `values` are Handler's."""
    handler = type("StandIn", (Handler,), {"expected": expected, "fault": fault, "asked": [], **values})
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
