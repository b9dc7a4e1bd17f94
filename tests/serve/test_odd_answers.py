"""Whatever asks a server says in one line that the answer is of another form."""

import asyncio
import http.server
import threading
from collections.abc import Iterator
from typing import ClassVar

import httpx
import pytest

from moe4.errors import ServeError
from moe4.evaluate.server import list_models, server_version
from moe4.evaluate.toolcheck.client import Endpoint, ask
from moe4.probe.check import CheckError, Server
from moe4.serve.chat import Conversation, connect

BODIES = {
    "nothing": b"",
    "null": b"null",
    "a number": b"7",
    "a list": b"[1]",
    "a text": b'"x"',
    "an empty object": b"{}",
    "data null": b'{"data": null, "choices": null}',
    "data of null": b'{"data": [null], "choices": [null]}',
    "data of texts": b'{"data": ["x"], "choices": ["x"]}',
    "messages of another kind": b'{"data": [{}], "choices": [{"message": 7, "logprobs": 7, "delta": 7}]}',
    "deep": b"[" * 100_000,
    "many digits": b'{"data": ' + b"1" * 5000 + b"}",
    "not UTF-8": b"\xff\xfe\x00",
    "HTML": b"<html>",
    "an odd event": b"data: 7\n\ndata: [DONE]\n\n",
    "half an event": b'data: {"choices": [{\n\n',
}
MODELS = b'{"data": [{"id": "one"}]}'


class Fixed(http.server.BaseHTTPRequestHandler):
    """Answers everything alike, but for /v1/models where `models` is given."""

    body: ClassVar[bytes] = b""
    models: ClassVar[bytes | None] = None
    missing: ClassVar[int] = 0

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(self.models if self.models is not None and self.path.endswith("/models") else self.body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(self.body)

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if b"data: " in body else "application/json")
        self.send_header("Content-Length", str(len(body) + self.missing))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def running() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fixed)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(params=BODIES)
def url(running: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    Fixed.body, Fixed.models, Fixed.missing = BODIES[request.param], None, 0
    return running


def test_models_for_the_harness(url: str) -> None:
    with pytest.raises(ServeError, match="lists no models"):
        list_models(url)
    assert server_version(url) is None


def test_models_for_the_probe(url: str) -> None:
    with pytest.raises(CheckError, match=r"does not answer with|lists no models"):
        Server(url, key=None, timeout=5).find_model(None)


def test_completions_for_the_probe(url: str) -> None:
    Fixed.models = MODELS
    server = Server(url, key=None, timeout=5)
    server.find_model(None)
    with pytest.raises(CheckError, match=r"does not answer (with|as)|without log-prob"):
        server.ask([1], max_tokens=1, top=1)


def test_models_for_the_chat(url: str) -> None:
    with pytest.raises(ServeError):
        connect(url, "one")


def test_a_chat(url: str) -> None:
    Fixed.models = MODELS
    client, model = connect(url, None)
    conversation = Conversation(client=client, model=model)
    try:
        assert "".join(conversation.ask("Hi")) == ""
    except ServeError:
        assert conversation.messages == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_check(url: str, stream: bool) -> None:
    async def asked() -> str | None:
        async with httpx.AsyncClient() as client:
            endpoint = Endpoint(base_url=url, model="one")
            return (await ask(client, endpoint, {}, stream=stream, max_retries=0)).error

    assert asyncio.run(asked())


def test_a_server_that_hangs_up(running: str) -> None:
    Fixed.body, Fixed.models, Fixed.missing = MODELS, None, 10
    with pytest.raises(ServeError, match="no OpenAI-compatible server at"):
        list_models(running)
    with pytest.raises(CheckError, match="no OpenAI-compatible server answers at"):
        Server(running, key=None, timeout=5).find_model(None)
    assert server_version(running) is None


@pytest.mark.parametrize(
    "address", ["http://[::1", "http://x:y", "http://127.0.0.1:99999", "x", "", "http://a b"]
)
def test_a_chat_with_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(ServeError):
        connect(address, None)
