"""Asking a server for the expected answers: a right one passes, a wrong one fails, others give one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile import BAD_ADDRESSES
from probe.completions_stand_in import NUM_SEQUENCES, make_expected, serving
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import ProbeError
from moe4.probe import check
from moe4.probe.ask import ask_server, check_when_ready, script_text

EXPECTED = make_expected()


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    (tmp_path / "moe4-probe.json").write_text(json.dumps(EXPECTED))
    return tmp_path


def probe(release: Path, url: str, *more: str) -> Any:
    return CliRunner().invoke(app, ["probe", str(release), "--url", url, *more])


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_right_server_passes(release: Path, suffix: str) -> None:
    with serving(EXPECTED) as url:
        result = probe(release, url + suffix, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["ok"]
    assert facts["model"] == "tiny"
    assert [group["name"] for group in facts["groups"]] == ["prompts", "decoded"]
    assert [group["num"] for group in facts["groups"]] == [NUM_SEQUENCES, NUM_SEQUENCES]
    assert facts["wrong_tokens"] == 0
    assert 0.8 * 0.05 < facts["groups"][0]["shift"]["typical"] < 1.2 * 0.05


@pytest.mark.parametrize(
    ("fault", "failing"),
    [("wrong", [False, False]), ("decoding", [True, False]), ("few wrong", [False, False])],
)
def test_a_wrong_server_fails(release: Path, fault: str, failing: list[bool]) -> None:
    with serving(EXPECTED, fault) as url:
        result = probe(release, url, "--json")
        text = probe(release, url)
    assert result.exit_code == text.exit_code == 1
    facts = json.loads(result.stdout)
    assert [group["ok"] for group in facts["groups"]] == failing
    assert text.stdout.startswith("probe: FAIL: 48 prompts: shift typical ")
    assert "do not trust its answers" in text.stdout


LINES = {
    "no models": "serves no model",
    "no logprobs": "answers without log-probabilities; it must support `logprobs`",
    "text": "names tokens by their text ('word ",
    "few": "lists 5 log-probabilities, 20 are needed: raise its limit (vLLM: --max-logprobs 20)",
    "logits": "lists values that are not log-probabilities; vLLM needs --logprobs-mode raw_logprobs",
    "max_logprobs": "allowed: 5; the check needs 20 log-probabilities (vLLM: --max-logprobs 20)",
    "vocabulary": "out of vocabulary; the server's model is not the one the probe was made for",
    "no completions": "answers 404: Not Found; the check needs the plain completions API",
    "dies": "answers 500: EngineCore encountered an issue",
    "not the API": "does not answer as the completions API does",
}


@pytest.mark.parametrize("fault", LINES)
def test_a_server_that_cannot_be_asked_gives_one_line(release: Path, fault: str) -> None:
    with serving(EXPECTED, fault) as url, pytest.raises(ProbeError) as caught:
        ask_server(release, url)
    assert LINES[fault] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_server_another_model(release: Path) -> None:
    with pytest.raises(ProbeError, match=r"no OpenAI-compatible server answers at http://127.0.0.1:9/v1: "):
        ask_server(release, "http://127.0.0.1:9")
    with serving(EXPECTED) as url, pytest.raises(ProbeError, match="does not serve large; it serves tiny"):
        ask_server(release, url, model="large")


@pytest.mark.parametrize("url", BAD_ADDRESSES)
def test_what_is_no_address(release: Path, url: str) -> None:
    with pytest.raises(ProbeError, match=r" is not an address; give one such as http://"):
        ask_server(release, url)


def test_the_key_is_sent(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(EXPECTED, key="secret") as url:
        with pytest.raises(ProbeError, match="answers 401: Unauthorized; set VLLM_API_KEY to its key"):
            ask_server(release, url)
        assert ask_server(release, url, key="secret")["ok"]
        monkeypatch.setenv("VLLM_API_KEY", "secret")
        assert probe(release, url).exit_code == 0


def test_long_sequences_are_left_out_and_too_few_refused(release: Path) -> None:
    with serving(EXPECTED, max_model_len=120) as url:
        result = ask_server(release, url)
    assert result["ok"]
    assert result["num_asked"] == 40  # of 2, 5, 8, ... tokens
    with serving(EXPECTED, max_model_len=50) as url, pytest.raises(ProbeError) as caught:
        ask_server(release, url)
    assert "only 16 of 48 sequences are shorter than the server's max_model_len of 50" in str(caught.value)


def test_time_that_runs_out(release: Path) -> None:
    with serving(EXPECTED) as url, pytest.raises(ProbeError, match="only 0 answers came within 0 s"):
        ask_server(release, url, seconds=0.0)


def test_what_is_asked(release: Path) -> None:
    asked: list[dict[str, Any]] = []
    with serving(EXPECTED, asked=asked) as url:
        ask_server(release, url)
    lengths = [len(body["prompt"]) for body in asked[: check.NUM_ALONE]]
    assert lengths == sorted(lengths)  # one after the other, short ones first
    assert {body["max_tokens"] for body in asked} == {1, 2}
    first = {key: value for key, value in asked[0].items() if key != "prompt"}
    assert first == {
        "model": "tiny",
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 20,
        "return_tokens_as_token_ids": True,
    }


def test_a_bad_file_and_none(tmp_path: Path, release: Path) -> None:
    result = CliRunner().invoke(app, ["probe", str(tmp_path / "none.json"), "--url", "http://127.0.0.1:9"])
    assert isinstance(result.exception, ProbeError)
    assert isinstance(CliRunner().invoke(app, ["probe"]).exception, ProbeError)
    data = json.loads((release / "moe4-probe.json").read_text())
    del data["sequences"][0]["bf16"]
    (release / "moe4-probe.json").write_text(json.dumps(data))
    with pytest.raises(ProbeError, match='has no "bf16" answers; moe4 probe RELEASE --force makes it again'):
        ask_server(release, "http://127.0.0.1:9")


def test_a_new_server_is_checked(release: Path, tmp_path: Path) -> None:
    def run(url: str, folder: Path = release) -> tuple[bool | None, str]:
        return check_when_ready(folder, url, "tiny", key=None, on_progress=lambda done, total: None)

    with serving(EXPECTED) as url:
        ok, text = run(url)
        assert ok is True
        assert text.startswith("probe: PASS: ")
        (tmp_path / "bare").mkdir()
        assert run(url, tmp_path / "bare") == (
            None,
            f"moe4: {tmp_path / 'bare'} holds no expected answers to check; moe4 probe "
            f"{tmp_path / 'bare'} makes them",
        )
    with serving(EXPECTED, "wrong") as url:
        ok, text = run(url)
        assert ok is False
        assert text.startswith("probe: FAIL: ")
    with serving(EXPECTED, "max_logprobs") as url:
        ok, text = run(url)
        assert ok is None
        assert text.startswith("moe4: the answers were not checked: ")


@pytest.mark.parametrize(
    ("fault", "code", "begins"),
    [("", 0, "probe: PASS: "), ("wrong", 1, "probe: FAIL: "), ("text", 2, "error: the server names tokens")],
)
def test_the_script_alone(release: Path, tmp_path: Path, fault: str, code: int, begins: str) -> None:
    """It runs with the standard library alone, and says what the command says."""
    printed = CliRunner().invoke(app, ["probe", "--print-script"])
    assert printed.stdout == script_text()
    script = tmp_path / "check.py"
    script.write_text(printed.stdout)
    with serving(EXPECTED, fault) as url:
        ran = subprocess.run(
            [sys.executable, "-I", "-S", str(script), str(release), url],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "VLLM_API_KEY": ""},
        )
        ours = probe(release, url)
    assert ran.returncode == code, ran.stderr
    assert (ran.stdout or ran.stderr).startswith(begins)
    if code < 2:
        assert ran.stdout == ours.stdout


def test_the_script_needs_python_3_8_alone() -> None:
    import ast

    tree = ast.parse(script_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names


@pytest.mark.parametrize(("fault", "ok"), [("", True), ("wrong", False), ("text", False)])
def test_smoke_asks_too(release: Path, fault: str, ok: bool) -> None:
    with serving(EXPECTED, fault) as url:
        result = CliRunner().invoke(app, ["smoke", url, "--probe", str(release), "--json"])
    probes = [check for check in json.loads(result.stdout)["checks"] if check["name"] == "probe"]
    assert [entry["ok"] for entry in probes] == [ok]
    begins = {
        "": "48 prompts: shift",
        "wrong": "not what the release gives: 48 prompts",
        "text": "the server names",
    }
    assert probes[0]["detail"].startswith(begins[fault])
    bad = CliRunner().invoke(app, ["smoke", "http://127.0.0.1:9", "--probe", str(release / "none")])
    assert isinstance(bad.exception, ProbeError)
