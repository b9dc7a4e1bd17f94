"""`moe4-probe.json`: what is written is read again, and each thing that can be wrong is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe4.errors import ProbeError
from moe4.probe import check
from moe4.probe.form import (
    Expectation,
    ExpectedAnswers,
    ProbeSequence,
    Reach,
    encode_probe,
    find_problems,
    read_probe,
)

IDS = list(range(20))
LOGPROBS = [-0.5 - place / 4 for place in range(20)]


def answers() -> ExpectedAnswers:
    expectation = Expectation(ids=IDS, logprobs=[value - 2 for value in LOGPROBS])
    sequences = [
        ProbeSequence(kind="chat", tokens=[7, 3, 9], released=expectation, source=expectation),
        ProbeSequence(kind="text", tokens=[1], released=expectation),
    ]
    return ExpectedAnswers(
        model_type="kimi_k2",
        sequences=sequences,
        experts=Reach(num_pairs=96, num_unreached=2),
        remarks=["text in place of all chats with tools: the model's chat template leaves out the tools"],
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "moe4-probe.json"
    path.write_bytes(encode_probe(answers()))
    assert read_probe(path, vocab_size=20) == answers()
    data = json.loads(path.read_text())
    assert data == answers().to_dict()
    assert list(data)[:2] == ["format", "version"]
    assert "source" not in data["sequences"][1]


Change = tuple[list[str | int], Any]
WRONG: list[tuple[Change, str]] = [
    ((["format"], "probe"), 'expected an object whose "format" is "moe4-probe"'),
    ((["version"], 2), '"version" must be 1, found 2; another version of moe4 reads it'),
    ((["model_type"], None), '"model_type" must be a string, found None'),
    ((["top"], 21), '"top" must be a number from 1 to 20, found 21'),
    ((["top"], True), '"top" must be a number from 1 to 20, found True'),
    ((["experts"], {}), '"experts" must hold "num_pairs" and "num_unreached", found {}'),
    ((["experts", "num_pairs"], -1), '"experts" must hold numbers of 0 or more'),
    ((["remarks"], "none"), "\"remarks\" must be a list of strings, found 'none'"),
    ((["sequences"], []), '"sequences" must be a list that is not empty'),
    ((["sequences", 1], 5), 'sequence 1: expected an object with "kind", "tokens" and "released"'),
    (
        (["sequences", 0, "kind"], "song"),
        'sequence 0: "kind" must be one of chat, tool_call, tool_result, text',
    ),
    ((["sequences", 0, "tokens"], []), 'sequence 0: "tokens" must be a list of token ids that is not empty'),
    ((["sequences", 0, "tokens", 1], -3), 'sequence 0: "tokens" must be a list of token ids'),
    (
        (["sequences", 0, "tokens", 1], 20),
        'sequence 0: "tokens" must lie below the vocabulary\'s size 20, found 20',
    ),
    (
        (["sequences", 1, "released"], []),
        'sequence 1: "released" must be an object with "ids" and "logprobs"',
    ),
    (
        (["sequences", 1, "released", "ids"], IDS[1:]),
        'sequence 1: "released" must have 20 different ids, found 19',
    ),
    (
        (["sequences", 1, "released", "ids", 0], 5),
        'sequence 1: "released" must have 20 different ids, found 19 in 20',
    ),
    ((["sequences", 1, "released", "ids", 0], 5.5), '"released" has ids that must be a list of token ids'),
    (
        (["sequences", 0, "source", "logprobs"], LOGPROBS[1:]),
        '"source" must have 20 log-probabilities, found 19',
    ),
    ((["sequences", 0, "source", "logprobs", 3], "x"), "has log-probabilities that are not finite numbers"),
    (
        (["sequences", 0, "source", "logprobs", 19], 0),
        "has log-probabilities that are not sorted, likeliest first",
    ),
    (
        (["sequences", 0, "source", "logprobs", 0], 900.0),
        'sequence 0: "source" has a log-probability above 0: 900.0',
    ),
    ((["sequences", 0, "source", "logprobs"], LOGPROBS), "add up to 2.72"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_wrong_is_one_line(change: Change, message: str, tmp_path: Path) -> None:
    (*way, last), value = change
    data = json.loads(encode_probe(answers()))
    place: Any = data
    for step in way:
        place = place[step]
    place[last] = value
    path = tmp_path / "moe4-probe.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ProbeError) as error:
        read_probe(path, vocab_size=20)
    text = str(error.value)
    assert message in text
    assert text.startswith(f"{path}: ")
    assert text.endswith("; moe4 probe RELEASE --force makes it again")
    assert "\n" not in text


def test_a_file_that_is_no_json_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "moe4-probe.json"
    with pytest.raises(ProbeError, match=r"does not exist; moe4 probe RELEASE makes"):
        read_probe(path)
    path.write_text('{"format": ')
    with pytest.raises(ProbeError, match="is not JSON: "):
        read_probe(path)
    for value in ([], None, float("nan")):
        assert next(find_problems(value)).startswith("expected an object")


def test_reading_needs_no_torch() -> None:
    program = "import sys, moe4.probe.form; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_nested_too_deep_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "moe4-probe.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ProbeError, match=r"is not JSON: nested deeper than 64 levels"):
        read_probe(path)


def test_a_number_without_bounds_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "moe4-probe.json"
    path.write_text('{"format": 1' + "0" * 400 + "}")
    with pytest.raises(ProbeError, match=r"is not JSON: the number 10{19}\.\.\. has 401 digits"):
        read_probe(path)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ProbeError, match="pipe is a named pipe, not a regular file"):
        read_probe(tmp_path / "pipe")
    with pytest.raises(check.CheckError, match="pipe is not a regular file"):
        check.read_expected(str(tmp_path / "pipe"))
