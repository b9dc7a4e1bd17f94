"""The fuzzer itself: cases follow from their number, stay in their folder, and faults are seen."""

from pathlib import Path
from random import Random

import pytest
from fuzz.damaged_files import BY_KIND, damage, replace
from fuzz.odd_values import edit, to_json
from fuzz.sandbox import Ending, run_confined
from fuzz.verdict import judge

GOOD = Ending(code=0, output="{}", messages="", stack="", saved="", outside="", left_over=())


def ending(**changes: object) -> Ending:
    return Ending(**{**{name: getattr(GOOD, name) for name in GOOD.__slots__}, **changes})


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (ending(code=70, saved='File "/x/moe4/a.py", line 3, in f\nKeyError: 1'), "fault"),
        (ending(code=None, stack='File "/x/moe4/a.py", line 3 in f'), "hang"),
        (ending(code=-11), "signal 11"),
        (ending(code=1, messages="Traceback (most recent call last):"), "traceback"),
        (ending(code=130), "exit code 130"),
        (ending(code=2, messages="Usage: moe4"), "no clear line"),
        (ending(code=2, messages="moe4: error: a is wrong\nmoe4: error: b is wrong"), "no clear line"),
        (ending(code=2, messages="moe4: error: 'NoneType' object is not iterable"), "unclear line"),
        (ending(code=2, messages=f"moe4: error: {'x' * 3000}"), "unclear line"),
        (ending(output='{"a": NaN}'), "output is not JSON"),
        (ending(left_over=("x.partial",)), "left over"),
        (ending(outside="write to /x"), "outside"),
    ],
)
def test_a_fault_is_seen(found: Ending, kind: str) -> None:
    fault = judge(found, ["fit", "--json"])
    assert fault is not None
    assert fault.kind == kind


@pytest.mark.parametrize("found", [GOOD, ending(code=1), ending(code=2, messages="moe4: error: x has no y")])
def test_what_a_user_may_see_is_none(found: Ending) -> None:
    assert judge(found, ["fit", "--json"]) is None


def test_a_case_cannot_leave_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"

    def work() -> int:
        Path("inside").write_text("x")
        try:
            target.write_text("x")
        except PermissionError:
            return 5
        return 0

    found = run_confined(tmp_path.resolve() / "case", work, 5)
    assert found.code == 5
    assert str(target) in found.outside
    assert not target.exists()
    assert (tmp_path / "case" / "files" / "inside").exists()


def test_a_case_is_ended_when_its_time_is_over(tmp_path: Path) -> None:
    def work() -> int:
        while True:
            pass

    found = run_confined(tmp_path.resolve() / "case", work, 0.2)
    assert found.code is None
    assert "test_fuzz.py" in found.stack


def test_memory_is_bounded(tmp_path: Path) -> None:
    def work() -> int:
        try:
            bytearray(3 << 30)
        except MemoryError:
            return 5
        return 0

    assert run_confined(tmp_path.resolve() / "case", work, 5).code == 5


def test_edits_follow_from_the_seed() -> None:
    def edited(seed: int) -> list[bytes]:
        rng = Random(seed)
        data = {"a": [1, 2.5, "x"], "b": {"c": None, "d": [True, {}]}}
        texts = []
        for _ in range(50):
            data = edit(data, rng)
            data = data if isinstance(data, dict) else {"a": [1], "b": {}}
            texts.append(to_json(data, rng))
        return texts

    assert edited(1) == edited(1)
    assert edited(1) != edited(2)


@pytest.mark.parametrize("suffix", [".txt", *(suffix for suffixes, _ in BY_KIND for suffix in suffixes)])
def test_every_kind_of_file_can_be_damaged_again_and_again(suffix: str, tmp_path: Path) -> None:
    samples = {".safetensors": b'\x17\0\0\0\0\0\0\0{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}\0'}
    for seed in range(20):
        path = tmp_path / f"{seed}{suffix}"
        path.write_bytes(samples.get(suffix, b'{"a": 1, "b": [1, 2]}\n'))
        for _ in range(4):
            if path.is_file() and not path.is_symlink():
                damage(path, Random(seed))


def test_a_file_is_replaced_by_every_kind_of_thing(tmp_path: Path) -> None:
    kinds = set()
    for seed in range(200):
        path = tmp_path / str(seed)
        path.write_text("x")
        kinds.add(replace(path, Random(seed)))
    assert {"fifo", "socket", "folder", "missing", "sparse", "link to itself", "link to zeros"} <= kinds
