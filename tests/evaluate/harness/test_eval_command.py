"""`moe4 eval` as a user meets it: against a server, its errors in one line, and once through vLLM.

In processes of its own where that is what counts, else in this one, which imports the harness once.
"""

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import write_random_model, write_rounded_release
from safetensors.torch import save_file

from moe4.cli.main import main
from moe4.evaluate.harness import backend, evaluation
from moe4.evaluate.harness.request import EvaluationRequest
from moe4.evaluate.harness.results import Score, score
from moe4.progress import OnProgress

DATA = Path(__file__).resolve().parents[3] / "reference" / "data"
MODEL_NAME = "scripted"
ROWS = [
    json.loads(line) for line in (DATA / "heldout-problems.jsonl").read_text(encoding="utf-8").splitlines()
]


BOTH = ("--task", "k2_tiny_problems", "--task", "k2_tiny_problems_0shot")


Result = subprocess.CompletedProcess[str]
Eval = Callable[..., Result]


def eval_apart(
    *arguments: str, tasks: tuple[str, ...] = BOTH, environment: dict[str, str] | None = None
) -> Result:
    """Run the command as it is run, in processes of its own."""
    own = {key: value for key, value in os.environ.items() if not key.endswith("API_KEY")}
    return subprocess.run(
        [sys.executable, "-c", "from moe4.cli.main import main; main()", "eval", *arguments, *tasks],
        capture_output=True,
        text=True,
        check=False,
        env=own | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} | (environment or {}),
    )


@pytest.fixture
def moe4_eval(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Eval:
    """The command with its worker in this process."""

    def evaluate(request: EvaluationRequest, _: OnProgress) -> dict[str, Score]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {task: score(found) for task, found in backend.evaluate(request).items()}

    def run(*arguments: str, tasks: tuple[str, ...] = BOTH) -> Result:
        monkeypatch.setattr("sys.argv", ["moe4", "eval", *arguments, *tasks])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, int(stop.value.code or 0), shown.out, shown.err)

    for name in [name for name in os.environ if name.endswith("API_KEY")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(evaluation, "evaluate_model", evaluate)
    return run


def one_line(result: Result) -> str:
    """The single line on stderr of a run that failed with exit code 2."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


class Completions(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that is right where a question's number is even and it is asked 5-shot."""

    prompts: list[str]
    root: str | None = None

    def do_GET(self) -> None:
        if self.path == "/version":
            self.send_error(404)
            return
        entry = {"id": MODEL_NAME, "object": "model"} | ({"root": self.root} if self.root else {})
        self.reply({"object": "list", "data": [entry]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        assert body["temperature"] == 0
        assert "\n\n" in body["stop"]
        choices = []
        for index, prompt in enumerate(prompts):
            self.prompts.append(prompt)
            shots = prompt.split("\n\n")
            question = shots[-1].removeprefix("Question: ").removesuffix("\nAnswer:")
            number, row = next((n, row) for n, row in enumerate(ROWS) if row["question"] == question)
            right = len(shots) == 6 and number % 2 == 0
            choices.append({"index": index, "text": " " + row["answer"] if right else " No.\n#### 0"})
        self.reply({"id": "1", "object": "text_completion", "choices": choices, "model": MODEL_NAME})

    def reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    Completions.prompts = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Completions) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_server_is_asked_the_harness_questions(server: str, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    result = eval_apart(MODEL_NAME, "--base-url", server, "--limit", "8", "--json", "--output", str(output))
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout)["tasks"]
    assert scores["k2_tiny_problems"]["release"]["exact_match"] == 0.5
    assert scores["k2_tiny_problems_0shot"]["release"]["exact_match"] == 0.0
    assert scores["k2_tiny_problems"]["num_questions"] == 8
    assert len(Completions.prompts) == 16
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["tasks"] == scores
    answers = written["samples"]["k2_tiny_problems"]
    assert [answer["question"] for answer in answers] == [row["question"] for row in ROWS[:8]]
    assert [answer["release"]["value"] for answer in answers] == [1.0, 0.0] * 4
    assert answers[0]["target"] == ROWS[0]["answer"].rsplit("#### ", 1)[1]
    assert answers[0]["release"]["response"].strip() == ROWS[0]["answer"]


def test_a_server_that_cannot_be_reached(moe4_eval: Eval) -> None:
    line = one_line(moe4_eval("m", "--base-url", "http://127.0.0.1:9"))
    assert line.startswith("moe4: error: no OpenAI-compatible server at http://127.0.0.1:9/v1")
    assert "moe4 serve" in line


def test_a_server_without_the_model(server: str, moe4_eval: Eval) -> None:
    line = one_line(moe4_eval("other", "--base-url", f"{server}/v1/"))
    assert f"has no model other; it has {MODEL_NAME}" in line


def test_a_repeated_evaluation_asks_nothing_until_the_weights_change(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moe4_eval: Eval
) -> None:
    """The server says where its model lies, so its answers are known by the files' hashes."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("one")
    monkeypatch.setattr(Completions, "root", str(folder))
    monkeypatch.setattr(Completions, "prompts", [])
    options = ("--base-url", server, "--task", "k2_tiny_problems", "--json")
    first = moe4_eval(MODEL_NAME, *options, "--limit", "4", tasks=())
    assert first.returncode == 0, first.stderr
    assert len(Completions.prompts) == 4
    assert moe4_eval(MODEL_NAME, *options, "--limit", "4", tasks=()).stdout == first.stdout
    assert len(Completions.prompts) == 4
    (folder / "model.safetensors").write_text("other")
    assert moe4_eval(MODEL_NAME, *options, "--limit", "6", tasks=()).returncode == 0
    assert len(Completions.prompts) == 10


def test_an_unknown_task(server: str, moe4_eval: Eval) -> None:
    result = moe4_eval(MODEL_NAME, "--base-url", server, "--task", "no_such_task", tasks=())
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(
        "moe4: error: unknown task no_such_task; there are k2_tiny_problems, k2_tiny_problems_0shot, gsm8k"
    )


def test_a_model_that_is_not_there(tmp_path: Path, moe4_eval: Eval) -> None:
    assert "is not a folder" in one_line(moe4_eval(str(tmp_path / "none")))
    assert "has no config.json" in one_line(moe4_eval(str(tmp_path)))
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    assert "no safetensors file" in one_line(moe4_eval(str(tmp_path)))
    (tmp_path / "model.safetensors").write_text("")
    assert "is not a whole safetensors file" in one_line(moe4_eval(str(tmp_path)))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "is not a folder" in one_line(moe4_eval(str(tmp_path), "--against", str(tmp_path / "none")))


def test_data_that_are_not_there(tmp_path: Path, moe4_eval: Eval) -> None:
    assert "has no heldout-problems.jsonl" in one_line(moe4_eval("m", "--data-dir", str(tmp_path)))
    assert "has no train.jsonl" in one_line(moe4_eval("m", "--gsm8k-dir", str(tmp_path), tasks=()))
    line = one_line(moe4_eval("m", "--output", str(tmp_path / "none" / "scores.json")))
    assert "cannot be written" in line


def test_no_model_is_asked_questions_that_nobody_chose(tmp_path: Path, moe4_eval: Eval) -> None:
    assert "give --task: k2_tiny_problems, " in one_line(moe4_eval(str(tmp_path), tasks=()))


def test_broken_questions_are_named(server: str, tmp_path: Path, moe4_eval: Eval) -> None:
    for name in ("heldout-problems.jsonl", "fewshot-problems.jsonl"):
        (tmp_path / name).write_text('{"question": "a", "answer": "#### 1"}\nnonsense\n')
    result = moe4_eval(MODEL_NAME, "--base-url", server, "--data-dir", str(tmp_path))
    assert result.returncode == 2
    assert "line 2: expected" in result.stderr.splitlines()[-1]


def test_without_the_hub_the_option_for_gsm8k_is_named(server: str) -> None:
    """The worker finds that out, in a process of its own."""
    result = eval_apart(MODEL_NAME, "--base-url", server, tasks=("--task", "gsm8k"))
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("moe4: error: GSM8K cannot be downloaded from the hub (")
    assert line.endswith("; give a folder with train.jsonl and test.jsonl by --gsm8k-dir")


def test_the_harness_failing_is_one_line_with_its_log(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    result = eval_apart(str(tmp_path), "--limit", "1")
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert "failed: " in line
    assert "Traceback" not in result.stderr
    log = Path(line.rsplit("see ", 1)[1])
    assert "Traceback" in log.read_text()
    log.unlink()


@pytest.mark.vllm
def test_before_and_after_through_vllm(tmp_path: Path) -> None:
    """Random weights and their W4A16 release, which on CPUs loads only with our plugin: all is wrong."""
    source = write_random_model(tmp_path / "source", num_hidden_layers=2, n_routed_experts=4)
    release = write_rounded_release(source, tmp_path / "release", 128)
    options = ("--task", "k2_tiny_problems_0shot", "--limit", "1", "--json")
    # vLLM's engine in the worker, as no more than its answers counts here: a process less to start, for each.
    alone = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    result = eval_apart(str(release), "--against", str(source), *options, tasks=(), environment=alone)
    assert result.returncode == 0, result.stderr
    task = json.loads(result.stdout)["tasks"]["k2_tiny_problems_0shot"]
    assert task["num_questions"] == 1
    assert task["baseline"]["exact_match"] == task["release"]["exact_match"] == 0.0
    change = task["change"]
    assert (change["difference"], change["gained"], change["lost"], change["recovery"]) == (0.0, 0, 0, None)
