"""vLLM's own server with a key, of a damaged release.

Each of its routes asks for the key, which is seen nowhere; `moe4 serve` notices the damage by asking itself.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from model_fixtures import write_random_model, write_rounded_release
from safetensors.torch import load_file, save_file

from moe4.probe.make import ProbeOptions, make_probe

pytestmark = pytest.mark.vllm

KEY = "sesame-5d2f"
SMALL = {"num_hidden_layers": 3, "n_routed_experts": 8, "num_experts_per_tok": 2}
OPEN = {"/health", "/ping"}
# Routes that no schema lists.
UNLISTED = (
    "/metrics",
    "/metrics/",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/docs/oauth2-redirect",
    "/",
    "/nothing",
)
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server: its process, what it said, its log."""

    process: "subprocess.Popen[str]"
    port: int
    probe: bool | None
    log: Path
    errors: Path

    def ask(self, method: str, path: str, body: object = None, key: str | None = None) -> tuple[int, bytes]:
        """Send the path as it is, which libraries would tidy up; return status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        found = response.status, response.read()
        connection.close()
        return found


def write_damaged_release(folder: Path) -> Path:
    """Return a release with its expected answers, one layer's scales of gates and ups a row off."""
    release = write_rounded_release(write_random_model(folder / "source", **SMALL), folder / "release", 32)
    make_probe(ProbeOptions(release=release), lambda line: None)
    (shard,) = release.glob("*.safetensors")
    tensors = load_file(shard)
    for name, tensor in tensors.items():
        if ".layers.1.mlp.experts." in name and name.endswith(
            ("gate_proj.weight_scale", "up_proj.weight_scale")
        ):
            tensors[name] = torch.roll(tensor, 1, 0).contiguous()
    save_file(tensors, shard, metadata={"format": "pt"})
    return release


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("guarded")
    release = write_damaged_release(folder)
    log, errors = folder / "vllm.log", folder / "errors"
    program = "from moe4.cli.main import main; main()"
    command = [sys.executable, "-c", program, "serve", str(release), "--port", "0", "--json", "--verbose"]
    command += ["--max-model-len", "1024", "--log", str(log), "--api-key", KEY]
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": "DEBUG"}
    environment.pop("VLLM_API_KEY", None)
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, errors.read_text()
        ready = json.loads(line)
        port = int(ready["url"].split(":")[2].split("/")[0])
        yield Server(process=process, port=port, probe=ready["probe"], log=log, errors=errors)
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_the_damage_is_noticed(server: Server) -> None:
    assert server.probe is False
    said = server.errors.read_text()
    assert "probe: FAIL: " in said
    assert "moe4: this server's answers are not the release's, but it keeps serving" in said


def test_every_route_asks_for_the_key(server: Server) -> None:
    status, schema = server.ask("GET", "/openapi.json", key=KEY)
    assert status == 200
    listed = {
        (method.upper(), path) for path, methods in json.loads(schema)["paths"].items() for method in methods
    }
    assert {("POST", "/invocations"), ("POST", "/tokenize"), ("POST", "/v1/chat/completions")} <= listed
    routes = listed | {(method, path) for method in ("GET", "OPTIONS") for path in UNLISTED}
    for method, path in sorted(routes):
        for key in (None, "wrong"):
            status, body = server.ask(method, path, {} if method == "POST" else None, key)
            expected = 200 if path in OPEN else 401
            assert status == expected, (method, path, key, status, body[:200])


@pytest.mark.parametrize(
    "path",
    [
        *("//invocations", "/v1/../invocations", "/%69nvocations", "/invocations/", "/invocations?a=/health"),
        *(
            "/health/../invocations",
            "/health%2f..%2finvocations",
            "/health;/../invocations",
            "/./invocations",
        ),
        "http://127.0.0.1/invocations",
    ],
)
def test_no_spelling_of_a_path_gets_round_it(path: str, server: Server) -> None:
    status, body = server.ask("POST", path, CHAT)
    assert status == 401, body


def test_with_the_key_all_of_it_answers(server: Server) -> None:
    for path in ("/invocations", "/v1/chat/completions"):
        status, body = server.ask("POST", path, CHAT, KEY)
        assert status == 200, body
        assert json.loads(body)["choices"]
    assert server.ask("POST", "/tokenize", {"prompt": "Hi"}, KEY)[0] == 200
    assert b"vllm:num_requests_running" in server.ask("GET", "/metrics/", key=KEY)[1]
    assert server.ask("GET", "/health")[0] == 200


def test_the_key_is_seen_nowhere(server: Server) -> None:
    """Not in the list of processes, moe4's own included, nor in what is printed and logged."""
    parent = os.getpid()
    seen = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        seen += b"moe4.serve.guard.KeyGuard" in arguments
        assert int(folder.name) == parent or KEY.encode() not in arguments, arguments
    assert seen
    own = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().split(b"\0")
    assert own[-2] == b"*" * len(KEY)
    for file in (server.log, server.errors):
        text = file.read_text(errors="replace")
        assert KEY not in text
        assert "moe4.serve.guard.KeyGuard" in text
