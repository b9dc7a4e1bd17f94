"""The conversation behind `moe4 chat`, against a small HTTP server that behaves as told."""

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from moe4.errors import ServeError
from moe4.serve.chat import Conversation, connect

MOE4 = [sys.executable, "-c", "from moe4.cli.main import main; main()"]


class Api(http.server.BaseHTTPRequestHandler):
    """Two models and a chat that answers with the number of messages it got, in three pieces."""

    behaviour: ClassVar[str] = "well"
    requests: ClassVar[list[dict[str, Any]]] = []
    leave: ClassVar[threading.Event] = threading.Event()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.behaviour == "wants a key" and self.headers["Authorization"] != "Bearer secret":
            self.reply(401, {"error": {"message": "Unauthorized"}})
        else:
            name = "[red]\x1b]0;title\x07one" if self.behaviour == "paints" else "one"
            self.reply(200, {"object": "list", "data": [{"id": name, "object": "model"}, {"id": "two"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(request)
        if self.behaviour == "refuses":
            self.reply(400, {"error": {"message": "the conversation is too long", "code": 400}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        start = "[b]\x1b[2J\u202eyou sent " if self.behaviour == "paints" else "you sent "
        for piece in (start, str(len(request["messages"])), " messages"):
            self.event(choices=[{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
            if self.behaviour == "waits":
                self.wfile.flush()
                self.leave.wait(60)
                return
            if self.behaviour == "fails halfway":
                self.event(error={"message": "the engine died", "code": 500})
                return
        self.event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
        self.event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, **data: Any) -> None:
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "one", **data}
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    Api.behaviour = "well"
    Api.requests.clear()
    Api.leave.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    Api.leave.set()
    server.shutdown()
    server.server_close()


def talk(url: str, **settings: Any) -> Conversation:
    client, model = connect(url, None)
    return Conversation(client=client, model=model, **settings)


def test_the_whole_conversation_goes_with_each_message(url: str) -> None:
    conversation = talk(url, system="Be brief.", options={"max_tokens": 9})
    assert list(conversation.ask("one")) == ["you sent ", "2", " messages"]
    assert "".join(conversation.ask("two")) == "you sent 4 messages"
    assert conversation.finish_reason == "stop"
    assert conversation.usage == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    request = Api.requests[-1]
    assert (request["model"], request["max_tokens"], request["stream"]) == ("one", 9, True)
    assert [message["role"] for message in request["messages"]] == ["system", "user", "assistant", "user"]
    conversation.reset()
    assert "".join(conversation.ask("three")) == "you sent 2 messages"


def test_a_stopped_answer_is_kept_as_far_as_it_came(url: str) -> None:
    conversation = talk(url)
    pieces = conversation.ask("one")
    assert next(pieces) == "you sent "
    pieces.close()  # type: ignore[attr-defined]
    assert conversation.messages[-1] == {"role": "assistant", "content": "you sent "}
    assert "".join(conversation.ask("two")) == "you sent 3 messages"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("refuses", "refused the request: the conversation is too long"),
        ("fails halfway", "broke off the answer: the engine died"),
    ],
)
def test_a_failed_message_is_forgotten(url: str, behaviour: str, reason: str) -> None:
    conversation = talk(url)
    Api.behaviour = behaviour
    with pytest.raises(ServeError, match=reason):
        list(conversation.ask("one"))
    Api.behaviour = "well"
    assert "".join(conversation.ask("two")) == "you sent 1 messages"


def test_the_api_key_comes_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Api.behaviour = "wants a key"
    with pytest.raises(ServeError, match="set VLLM_API_KEY"):
        connect(url, None)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert connect(url, "two")[1] == "two"


def test_an_unknown_model_is_named_with_those_there_are(url: str) -> None:
    with pytest.raises(ServeError, match="does not serve three; it has one, two"):
        connect(url, "three")


def chat(*arguments: str, messages: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*MOE4, "chat", *arguments], input=messages, capture_output=True, text=True, check=False
    )


def test_without_a_terminal_each_line_is_a_message(url: str) -> None:
    result = chat("--base-url", url, messages="one\n\ntwo\n/reset\nthree\n/exit\nfour\n")
    assert result.stdout.splitlines() == [f"you sent {num} messages" for num in (1, 3, 1)]
    assert (result.returncode, result.stderr) == (0, "")


def test_one_message_as_json(url: str) -> None:
    result = chat("--base-url", url, "--message", "one", "--json", "--model", "two")
    assert json.loads(result.stdout) == {
        "model": "two",
        "content": "you sent 1 messages",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }


def test_the_address_may_lack_its_v1(url: str) -> None:
    for address in (url, url.removesuffix("/v1"), url.removesuffix("v1")):
        result = chat("--base-url", address, "--message", "one")
        assert (result.returncode, result.stdout) == (0, "you sent 1 messages\n")


@pytest.mark.parametrize("with_option", [False, True])
def test_bytes_that_are_no_text_are_one_line(url: str, with_option: bool) -> None:
    options: list[str | bytes] = ["--message", b"caf\xe9"] if with_option else []
    command = [*MOE4, "chat", "--base-url", url, *options]
    result = subprocess.run(command, input=b"one\ncaf\xe9\n", capture_output=True, check=False)
    where = b"--message" if with_option else b"line 2 of standard input"
    assert result.returncode == 2
    why = b"moe4: error: %s is not UTF-8 text, at character 4: convert it, as with iconv\n"
    assert result.stderr == why % where
    assert result.stdout == (b"" if with_option else b"you sent 1 messages\n")


def test_no_server_is_one_line() -> None:
    result = chat("--base-url", "http://127.0.0.1:9/v1", "--message", "one")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("moe4: error: no server answers at http://127.0.0.1:9/v1; start one")
    assert result.stderr.count("\n") == 1
