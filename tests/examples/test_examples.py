"""Every example, run as its header says against one real server that `moe4 serve` started.

k2-tiny must really call the tool and repeat its result.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from model_fixtures import REFERENCE_MODEL, REPOSITORY, write_rounded_release

pytestmark = pytest.mark.vllm

EXAMPLES = REPOSITORY / "examples"
MOE4 = [sys.executable, "-c", "from moe4.cli.main import main; main()"]
sys.path.insert(0, str(EXAMPLES))


@dataclass(frozen=True)
class Server:
    release: Path
    url: str
    model: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounded_release(REFERENCE_MODEL, tmp_path_factory.mktemp("release") / "k2-tiny-w4a16")


@pytest.fixture(scope="module")
def server(release: Path) -> Iterator[Server]:
    """Start it as a user would, and see that nothing is left when it has been stopped."""
    process = subprocess.Popen(
        [*MOE4, "serve", str(release), "--port", "0", "--json", "--max-model-len", "2048"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    if not ready:
        pytest.fail(process.communicate()[1])
    facts = json.loads(ready)
    family = descendants(process.pid)
    assert len(family) >= 3  # vLLM's API server, engine and worker
    try:
        yield Server(release=release, url=facts["url"], model=facts["model"])
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors.endswith("moe4: the server has stopped\n")
    assert not [pid for pid in family if is_running(pid)]


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
        "model": server.model,
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
    assert answer["model"] == server.model == "k2-tiny-w4a16"
    assert answer["usage"]["completion_tokens"] <= 32
    result = subprocess.run(
        command, input="Hello! Who are you?\n/exit\nno\n", capture_output=True, text=True, check=True
    )
    assert result.stdout == answer["content"] + "\n"


def test_a_taken_port_is_one_line(server: Server) -> None:
    port = server.url.rpartition(":")[2].removesuffix("/v1")
    result = subprocess.run(
        [*MOE4, "serve", str(server.release), "--port", port], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"moe4: error: cannot listen on 127.0.0.1:{port}: Address already in use")
    assert result.stderr.count("\n") == 1


def test_offline_generation(release: Path) -> None:
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "offline_generation.py"), str(release), "Tom has 3 apples."],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
        timeout=400,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "'Tom has 3 apples.' -> '" in result.stdout, time.monotonic() - began
