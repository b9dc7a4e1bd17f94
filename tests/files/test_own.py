"""What is wrong with a file that moe4 wrote is one line: what, expected, found, who wrote it, what to do."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from moe4 import __version__
from moe4.checkpoint.journal import BEGIN_LINE, SHARD_LINE
from moe4.checkpoint.report_file import REPORT
from moe4.errors import EvaluationError, Moe4Error
from moe4.evaluate.toolcheck.run import KEPT_ANSWER
from moe4.files.own import OwnFile
from moe4.probe.form import PROBE_FILE
from moe4.quantize.reporting.saved import SAVED_LAYER, SAVED_REST
from moe4.quantize.run.kept_tokens import KEPT_TOKENS
from moe4.schema import Growing, Own

KINDS = [BEGIN_LINE, SHARD_LINE, REPORT, KEPT_ANSWER, PROBE_FILE, SAVED_LAYER, SAVED_REST, KEPT_TOKENS]


class Measured(Own):
    """A file of the test's."""

    version: Literal[3] = 3
    moe4: str = ""
    value: float


FILE = OwnFile(form=Measured, error=EvaluationError, remedy="measure again", writer=("moe4",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"value": "1"}, 'is damaged: value must be a number, found "1"'),
        ({"value": 1, "other": 2}, "is damaged: other is not a field of this object"),
        ({"version": 3}, "is damaged: value is missing"),
        ({"version": 2, "value": 1}, "is of version 2, and this moe4 reads version 3"),
        ({"version": "2", "value": 1}, 'is damaged: version must be 3, found "2"'),
        (
            {"version": 4, "moe4": "9.9", "others": []},
            f"is of version 4, and this moe4 reads version 3 (moe4 9.9 wrote it, this is {__version__}); "
            "use moe4 9.9, or",
        ),
        (
            {"moe4": "0.0.1"},
            f"cannot be read: value is missing (moe4 0.0.1 wrote it, this is {__version__}); "
            "use moe4 0.0.1, or",
        ),
        ({"moe4": __version__}, "is damaged: value is missing"),
        ({"moe4": ["0.1"], "value": 1}, 'is damaged: moe4 must be a string, found ["0.1"]'),
        ([1], "is damaged: the file must be an object, found [1]"),
        ("x", 'is damaged: the file must be an object, found "x"'),
    ],
)
def test_what_is_wrong_and_who_wrote_it(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(content))
    with pytest.raises(EvaluationError) as caught:
        FILE.read(path)
    separator = " " if words.endswith(", or") else "; "
    assert str(caught.value) == f"{path} {words}{separator}measure again"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}', b"NaN"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.form.__name__)
def test_what_is_not_json_is_one_line_for_every_kind(
    kind: OwnFile[Any], content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(Moe4Error) as caught:
        kind.read(path)
    text = str(caught.value)
    assert type(caught.value) is kind.error
    assert text.startswith(f"{path} is damaged: not JSON: ")
    assert text.endswith(f"; {kind.remedy}")
    assert "\n" not in text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.form.__name__)
def test_a_file_that_is_not_there_or_another_thing(kind: OwnFile[Any], tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none", "does not exist"), (tmp_path, "is a folder, not a regular file")):
        with pytest.raises(Moe4Error) as caught:
            kind.read(path)
        assert type(caught.value) is kind.error
        assert str(caught.value).startswith(f"{path} {words}")
        assert str(caught.value).endswith(f"; {kind.remedy}")


class Kept(Growing):
    """An object that another version changes."""

    first: int
    second: int | None = None


def test_what_another_version_added_is_kept_and_what_was_not_given_stays_away(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text('{"first": 1, "third": {"a": [null]}}')
    found = OwnFile(form=Kept, error=EvaluationError, remedy="make it again").read(path)
    assert found.as_dict() == {"first": 1, "third": {"a": [None]}}
    assert Kept(first=1, second=None).as_dict() == {"first": 1, "second": None}
