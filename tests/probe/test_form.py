"""`moe4-probe.json`: what is written is read again, and each thing that can be wrong is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe4 import __version__
from moe4.errors import ProbeError
from moe4.probe import check
from moe4.probe.form import (
    Expectation,
    ExpectedAnswers,
    ProbeSequence,
    Reach,
    encode_probe,
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
    (
        (["format"], "probe"),
        'format must be "moe4-probe", found "probe": this is not a file of expected answers',
    ),
    ((["version"], 2), "is of version 2, and this moe4 reads version 1; "),
    ((["version"], "1"), 'version must be 1, found "1"'),
    ((["model_type"], None), "model_type must be a string, found null"),
    ((["top"], 21), "top must be at most 20, found 21"),
    ((["top"], True), "top must be a whole number, found true"),
    ((["top"], 19), "sequences[0].released must have 19 ids, found 20"),
    ((["computed", "dtype"], "bfloat16"), "computed.dtype must be 'float32', found \"bfloat16\""),
    ((["experts"], {}), "experts.num_pairs is missing; experts.num_unreached is missing"),
    ((["experts", "num_pairs"], -1), "experts.num_pairs must be at least 0, found -1"),
    ((["experts", "others"], 1), "experts.others is not a field of this object"),
    ((["remarks"], "none"), 'remarks must be a list, found "none"'),
    ((["remarks"], [5]), "remarks[0] must be a string, found 5"),
    ((["sequences"], []), "sequences must have at least 1 entry"),
    ((["sequences"], {}), "sequences must be a list, found {}"),
    ((["sequences", 1], 5), "sequences[1] must be an object, found 5"),
    (
        (["sequences", 0, "kind"], "song"),
        "sequences[0].kind must be 'chat', 'tool_call', 'tool_result' or 'text', found \"song\"",
    ),
    ((["sequences", 0, "tokens"], []), "sequences[0].tokens must have at least 1 entry"),
    ((["sequences", 0, "tokens", 1], -3), "sequences[0].tokens[1] must be at least 0, found -3"),
    (
        (["sequences", 0, "tokens", 1], 20),
        "sequences[0].tokens must lie below the vocabulary's size 20, found 20",
    ),
    (
        (["sequences", 1, "released", "ids", 19], 77),
        "sequences[1].released.ids must lie below the vocabulary's size 20, found 77",
    ),
    ((["sequences", 1, "released"], []), "sequences[1].released must be an object, found []"),
    ((["sequences", 1, "bf16"], None), "sequences[1].bf16 must not be null"),
    (
        (["sequences", 1, "released", "ids"], IDS[1:]),
        "sequences[1].released: logprobs must be as many as ids, found 20 and 19",
    ),
    (
        (["sequences", 1, "released", "ids", 0], 5),
        "sequences[1].released: ids must differ, found 19 in 20",
    ),
    (
        (["sequences", 1, "released", "ids", 0], 5.5),
        "sequences[1].released.ids[0] must be a whole number, found 5.5",
    ),
    (
        (["sequences", 0, "source", "logprobs"], LOGPROBS[1:]),
        "sequences[0].source: logprobs must be as many as ids, found 19 and 20",
    ),
    (
        (["sequences", 0, "source", "logprobs", 3], "x"),
        'sequences[0].source.logprobs[3] must be a number, found "x"',
    ),
    (
        (["sequences", 0, "source", "logprobs", 19], 0),
        "sequences[0].source: logprobs must be sorted, likeliest first",
    ),
    (
        (["sequences", 0, "source", "logprobs", 0], 900.0),
        "sequences[0].source.logprobs[0] must be at most 0, found 900.0",
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
    assert text.startswith(f"{path} is ")
    assert text.endswith("; moe4 probe RELEASE --force makes it again")
    assert "\n" not in text


def test_a_file_that_is_no_json_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "moe4-probe.json"
    with pytest.raises(ProbeError, match=r"does not exist; moe4 probe RELEASE makes"):
        read_probe(path)
    path.write_text('{"format": ')
    with pytest.raises(ProbeError, match="not JSON: "):
        read_probe(path)
    for value in ("[]", "null", "5", '"moe4-probe"'):
        path.write_text(value)
        with pytest.raises(ProbeError, match="the file must be an object"):
            read_probe(path)


def test_the_bytes_of_the_form_are_what_they_were() -> None:
    """Version 1 as docs/probe.md has it: a file made again has the same bytes."""
    lines = encode_probe(answers()).decode().splitlines()
    assert lines[:4] == [
        "{",
        ' "format": "moe4-probe",',
        ' "version": 1,',
        f' "moe4_version": "{__version__}",',
    ]
    assert lines[6:9] == [' "computed": {', '  "dtype": "float32",', '  "weights": "released"']
    assert lines[-5] == ' "sequences": ['
    assert lines[-3].startswith('  {"kind":"text","tokens":[1],"released":{"ids":[0,1,2,')
    assert lines[-3].endswith("]}}") and '"source"' not in lines[-3]


def test_reading_needs_no_torch() -> None:
    program = "import sys, moe4.probe.form; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_nested_too_deep_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "moe4-probe.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ProbeError, match=r"not JSON: nested deeper than 64 levels"):
        read_probe(path)


def test_a_number_without_bounds_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "moe4-probe.json"
    path.write_text('{"format": 1' + "0" * 400 + "}")
    with pytest.raises(ProbeError, match=r"not JSON: the number 10{19}\.\.\. has 401 digits"):
        read_probe(path)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ProbeError, match="pipe is a named pipe, not a regular file"):
        read_probe(tmp_path / "pipe")
    with pytest.raises(check.CheckError, match="pipe is not a regular file"):
        check.read_expected(str(tmp_path / "pipe"))
