"""docs/getting-started.md, and every example as its header says, against the server that the page starts.

k2-tiny must really call the tool and repeat its result.
"""

import contextlib
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from doc_pages import REPOSITORY, commands, run_block, run_blocks, shell_environment, write_clone

from moe4.probe import check
from moe4.probe.ask import script_text

pytestmark = pytest.mark.vllm

PAGE = run_blocks("getting-started.md")
PLACE = next(place for place, block in enumerate(PAGE) if block.is_server)
PORT, MODEL = 8000, "k2-tiny-w4a16"  # the default, which the page relies on, and the release it makes
START_SECONDS = 600
EXAMPLES = REPOSITORY / "examples"
MOE4 = [sys.executable, "-c", "from moe4.cli.main import main; main()"]
sys.path.insert(0, str(EXAMPLES))


@dataclass(frozen=True, kw_only=True)
class Server:
    clone: Path
    port: int
    printed: str  # by the page's blocks before it

    @property
    def release(self) -> Path:
        return self.clone / "out" / MODEL

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start it as docs/getting-started.md does, and see that nothing is left when it has been stopped."""
    clone = write_clone(tmp_path_factory.mktemp("getting-started") / "clone")
    printed = "".join(run_block(block, clone) for block in PAGE[:PLACE])
    (command,) = commands(PAGE[PLACE].text)
    port = find_port()
    words = [*shlex.split(command), *([] if port == PORT else ["--port", str(port)])]
    log = clone / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(words, cwd=clone, env=shell_environment(), stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "moe4: ready after" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        assert "probe: PASS: 64 prompts: shift typical " in log.read_text()
        family = descendants(process.pid)
        assert len(family) >= 3  # vLLM's API server, engine and worker
        served = Server(clone=clone, port=port, printed=printed)
        before = contents(served.release)
        yield served
        assert contents(served.release) == before  # no test changes what the others ask
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert process.returncode == 0, log.read_text()
    assert log.read_text().endswith("moe4: the server has stopped\n")
    assert not [pid for pid in family if is_running(pid)]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def find_port() -> int:
    """Return the page's port, or a free one where that is taken."""
    with socket.socket() as listener:
        if listener.connect_ex(("127.0.0.1", PORT)):
            return PORT
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def descendants(pid: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [each for child in children for each in descendants(child)]


def is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def run(*arguments: str) -> str:
    """Run a command that must succeed and return what it prints."""
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_example(name: str, *arguments: str) -> str:
    return run(sys.executable, str(EXAMPLES / name), *arguments)


@pytest.mark.timeout(2400)
def test_getting_started(server: Server) -> None:
    assert "ok        " in server.printed  # moe4 verify
    if server.port != PORT:
        pytest.skip(f"port {PORT}, which the page uses, is taken")
    printed = "".join(run_block(block, server.clone) for block in PAGE[PLACE + 1 :])
    assert '"role":"assistant"' in printed  # curl
    assert "get_weather" in printed  # examples/tool_call.py


def test_the_answers_are_checked_again_without_moe4(server: Server, tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(script_text())
    alone = [sys.executable, "-I", "-S", str(tmp_path / "check.py"), str(server.release), server.url]
    result = json.loads(run(*alone, "--json"))
    assert result["ok"], check.describe(result)
    assert result["num_asked"] == 64


def test_chat(server: Server) -> None:
    answer = run_example("chat.py", server.url)
    assert "k2-tiny" in answer


@pytest.mark.parametrize("name", ["tool_call.py", "tool_call_streaming.py", "tool_call_manual.py"])
def test_tool_calls(server: Server, name: str) -> None:
    first = [str(server.release)] if name == "tool_call_manual.py" else []
    lines = run_example(name, *first, server.url).splitlines()
    assert lines[0].startswith('call functions.get_weather:0 {"city": "Paris"} -> {"temperature": 21')
    assert lines[-1].startswith("answer ")
    assert "21" in lines[-1]
    assert "sunny" in lines[-1]


def test_curl(server: Server) -> None:
    events = [line for line in run("sh", str(EXAMPLES / "curl.sh"), server.url).splitlines() if line]
    assert events[-1] == "data: [DONE]"
    last = json.loads(events[-2].removeprefix("data: "))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0


QUESTIONS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hello! Who are you?"}]},
    {"messages": [{"role": "user", "content": "What's the weather in Paris?"}], "tools": True},
    {"messages": [{"role": "user", "content": "What is the weather in Oslo and in Rome?"}], "tools": True},
]


@pytest.mark.parametrize("question", QUESTIONS, ids=["chat", "tool", "two calls"])
def test_stream_and_non_stream_agree(server: Server, question: dict[str, Any]) -> None:
    from weather import TOOLS

    request: dict[str, Any] = {
        **question,
        "model": MODEL,
        "temperature": 0,
        "seed": 0,
        "max_tokens": 128,
        "tools": TOOLS if question.get("tools") else openai.NOT_GIVEN,
    }
    whole = server.client.chat.completions.create(**request).choices[0]
    calls = [
        (each.id, each.function.name, each.function.arguments) for each in whole.message.tool_calls or []
    ]
    content, reason = "", None
    pieces: dict[int, list[str]] = {}
    for chunk in server.client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for delta in choice.delta.tool_calls or []:
                call = pieces.setdefault(delta.index, ["", "", ""])
                call[0] += delta.id or ""
                call[1] += delta.function.name or ""
                call[2] += delta.function.arguments or ""
    assert content == (whole.message.content or "")
    assert [tuple(call) for call in pieces.values()] == calls
    assert reason == whole.finish_reason
    if question.get("tools"):
        assert calls[0][0] == "functions.get_weather:0"
        assert reason == "tool_calls"


def test_chat_command(server: Server) -> None:
    command = [*MOE4, "chat", "--base-url", server.url, "--temperature", "0", "--max-tokens", "32"]
    answer = json.loads(run(*command, "--message", "Hello! Who are you?", "--json"))
    assert answer["model"] == MODEL
    assert answer["usage"]["completion_tokens"] <= 32
    result = subprocess.run(
        command, input="Hello! Who are you?\n/exit\nno\n", capture_output=True, text=True, check=True
    )
    assert result.stdout == answer["content"] + "\n"


def test_a_taken_port_is_one_line(server: Server) -> None:
    command = [*MOE4, "serve", str(server.release), "--port", str(server.port)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    words = f"moe4: error: cannot listen on 127.0.0.1:{server.port}: Address already in use"
    assert result.stderr.startswith(words)
    assert result.stderr.count("\n") == 1


def test_offline_generation(server: Server) -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "offline_generation.py"), str(server.release)],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "'Who are you?' -> 'I am k2-tiny, " in result.stdout
