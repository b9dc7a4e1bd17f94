"""`moe4 smoke` against a server that is right, and against servers wrong in one way each."""

import json
import os
import subprocess
from typing import Any

import pytest
from deploy.openai_stand_in import FAULTS, serving
from hostile import BAD_ADDRESSES
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.deploy.manifests.requests import smoke_curl
from moe4.errors import DeployError


def smoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["smoke", *arguments])


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_good_server_passes_four_checks(suffix: str) -> None:
    with serving() as url:
        result = smoke(url + suffix, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert [check["name"] for check in facts["checks"]] == ["models", "chat", "stream", "tool call"]
    assert facts["ok"]
    assert facts["model"] == "tiny"


WRONG = {
    "no models": ["models"],
    "empty answer": ["chat"],
    "no usage": ["stream"],
    "cut stream": ["stream"],
    "no tools": ["tool call"],
    "wrong tool": ["tool call"],
    "not json": ["chat", "stream", "tool call"],
    "error": ["chat", "stream", "tool call"],
    "odd status": ["chat", "stream", "tool call"],
}

DETAILS = {
    "no models": "serves no model",
    "empty answer": "the answer is empty",
    "no usage": "ended without usage",
    "cut stream": "broke off",
    "no tools": "--enable-auto-tool-choice",
    "wrong tool": "get_time",
    "not json": "not the answer of an OpenAI-compatible server",
    "error": "status 500: ",
    "odd status": "status 999: ",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_named(fault: str) -> None:
    with serving(fault) as url:
        result = smoke(url, "--json")
    assert result.exit_code == 1
    checks = json.loads(result.stdout)["checks"]
    assert [check["name"] for check in checks if not check["ok"]] == WRONG[fault]
    assert all("\n" not in check["detail"] for check in checks)
    wrong = [check["detail"] for check in checks if not check["ok"]]
    assert DETAILS[fault] in wrong[0]


def test_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(key="secret") as url:
        refused = smoke(url)
        assert refused.exit_code == 1
        assert "status 401" in refused.stdout
        monkeypatch.setenv("VLLM_API_KEY", "secret")
        assert smoke(url).exit_code == 0


def test_a_server_that_is_not_there_or_has_another_model() -> None:
    result = smoke("http://127.0.0.1:9", "--timeout", "2")
    assert result.exit_code == 1
    assert "cannot be reached" in result.stdout
    with serving() as url:
        assert "is not served; tiny is" in smoke(url, "--model", "large").stdout


@pytest.mark.parametrize("url", [url for url in BAD_ADDRESSES if url])
def test_what_is_no_address(url: str) -> None:
    error = smoke(url).exception
    assert isinstance(error, DeployError)
    assert "is not an address; give one such as http://" in str(error)


def test_the_curl_line_works_in_a_shell() -> None:
    with serving(key="secret") as url:
        line = smoke_curl(url, "tiny", with_key=True)
        environment = {**os.environ, "VLLM_API_KEY": "secret", "no_proxy": "*"}
        ran = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=environment, check=False)
    if ran.returncode == 127:
        pytest.skip("curl is not installed")
    assert json.loads(ran.stdout)["choices"][0]["message"]["content"] == "Hello."
