"""`moe4 serve` as a user types it, up to the point where vLLM would start."""

import json
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from model_fixtures import random_state, reference_config, write_checkpoint, write_rounded_release
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import ServeError
from moe4.serve.host import is_loopback

pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    config = reference_config(num_hidden_layers=2, n_routed_experts=4, vocab_size=64)
    source = write_checkpoint(folder / "source", config, random_state(config))
    return write_rounded_release(source, folder / "release")


def serve(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from moe4.cli.main import main; main()", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_print_command_prints_and_starts_nothing(release: Path) -> None:
    result = serve(str(release), "--print-command", "--port", "8125", "--max-num-seqs", "3")
    assert (result.returncode, result.stderr) == (0, "")
    words = shlex.split(result.stdout)
    assert words[words.index("serve") + 1] == str(release)
    assert words[-2:] == ["--max-num-seqs", "3"]
    as_json = json.loads(serve(str(release), "--print-command", "--port", "8125", "--json").stdout)
    variables = [f"{name}={value}" for name, value in as_json["environment"].items()]
    assert [*variables, *as_json["command"], "--max-num-seqs", "3"] == words


def test_faults_are_one_line_and_exit_code_2(release: Path, tmp_path: Path) -> None:
    for arguments, reason in (
        ((str(tmp_path / "none"),), f"{tmp_path / 'none'} is not a folder"),
        (("--max-num-seqs", "3", str(release)), "give the release's folder first"),
        ((str(release), "--tensor-parallel-size", "2"), "--tensor-parallel-size 2: the experts' inner width"),
        ((str(release), "--host", "203.0.113.1"), "cannot listen on 203.0.113.1:8000"),
    ):
        result = serve(*arguments)
        assert (result.returncode, result.stdout) == (2, ""), result
        assert result.stderr.startswith(f"moe4: error: {reason}"), result.stderr
        assert result.stderr.count("\n") == 1


def test_a_key_is_printed_nowhere(release: Path) -> None:
    for given in (["--api-key", "s3cret"], ["--api-key=s3cret"]):
        printed = serve(str(release), "--print-command", *given)
        assert (printed.returncode, printed.stderr) == (0, "")
        assert "s3cret" not in printed.stdout
        assert 'VLLM_API_KEY="${VLLM_API_KEY:?}" ' in printed.stdout
        as_json = serve(str(release), "--print-command", "--json", *given)
        assert "s3cret" not in as_json.stdout
        assert json.loads(as_json.stdout)["secrets"] == ["VLLM_API_KEY"]
        wrong = serve(*given, str(release))
        assert wrong.returncode == 2
        assert "s3cret" not in wrong.stderr
    for given in (["--api-key", "s3cret", "--max-model-len", "0"], ["--api-key", "s3cret\n"]):
        refused = serve(str(release), *given)
        assert refused.returncode == 2
        assert "s3cret" not in refused.stdout + refused.stderr


def test_ps_does_not_show_the_key() -> None:
    program = (
        "import sys, pathlib\n"
        "from moe4.serve.extra import hide_arguments\n"
        "hide_arguments(['k', 'two'])\n"
        "print(repr(pathlib.Path('/proc/self/cmdline').read_bytes().split(bytes(1))[3:-1]))\n"
        "print(sys.argv[1:])\n"
    )
    words = ["serve", "out/k", "--api-key=k", "--api-key", "two", "two2", "k"]
    ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    shown, known = ran.stdout.splitlines()
    assert shown == str([word.encode() for word in (*words[:2], "--api-key=*", words[3], "***", "two2", "*")])
    assert known == str(words)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("192.168.1.1", False), ("", False), ("server.example", False)),
    ],
)
def test_which_hosts_are_this_machines_own(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("host", "key", "warns"), [("0.0.0.0", "", True), ("0.0.0.0", "k", False), ("::1", "", False)]
)
def test_a_network_without_a_key_is_warned_of(
    host: str, key: str, warns: bool, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise ServeError("stopped here")

    monkeypatch.setattr(import_module("moe4.serve.run"), "ServerProcess", stop)
    monkeypatch.setattr(import_module("moe4.serve.run"), "free_port", lambda host, port: 8125)
    monkeypatch.setenv("VLLM_API_KEY", key)
    result = CliRunner().invoke(app, ["serve", str(release), "--host", host])
    assert str(result.exception) == "stopped here"
    line = "moe4: no API key: whoever reaches port 8125 may use the model; set VLLM_API_KEY\n"
    assert (line in result.stderr) == warns
