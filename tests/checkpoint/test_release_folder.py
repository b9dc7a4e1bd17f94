"""An output folder is written into and cleared only as far as it is moe4's own."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from journal_lines import BEGIN, ENVIRONMENT

from moe4 import __version__
from moe4.checkpoint.journal import Begin, Journal, is_unchanged, read_begin
from moe4.checkpoint.release_folder import ReleaseFolder, require_space
from moe4.errors import DiskSpaceError, OutputError, ResumeError
from moe4.units import format_bytes


def tree(folder: Path) -> dict[str, str]:
    """Return everything below a folder: links' aims, files' texts."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_text()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }


def work_is_a_link(out: Path, theirs: Path) -> None:
    (out / ".moe4").symlink_to(theirs)


def work_is_a_file(out: Path, theirs: Path) -> None:
    (out / ".moe4").write_text("theirs")


def in_work(name: str, make: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    def apply(out: Path, theirs: Path) -> None:
        (out / ".moe4").mkdir()
        make(out / ".moe4" / name, theirs)

    return apply


def to_notes(path: Path, theirs: Path) -> None:
    path.symlink_to(theirs / "notes.txt")


def text(path: Path, _: Path) -> None:
    path.write_text("theirs")


CASES = {
    "the work folder is a link": work_is_a_link,
    "the work folder is a file": work_is_a_file,
    "the lock is a link": in_work("lock", to_notes),
    "the lock is a FIFO": in_work("lock", lambda path, _: os.mkfifo(path)),
    "the journal is a link": in_work("journal.jsonl", to_notes),
    "activations are a link": in_work("hidden-00000.bin", to_notes),
    "a partial file is a link": in_work("model-00001-of-00004.safetensors.partial", to_notes),
    "a partial file of others": in_work("download.partial", text),
    "a file of others": in_work("notes.txt", text),
    "a folder": in_work("layer-00000.json", lambda path, _: path.mkdir()),
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_what_is_not_a_runs_is_refused_and_left_alone(name: str, resume: bool, tmp_path: Path) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    out.mkdir()
    theirs.mkdir()
    (theirs / "notes.txt").write_text("theirs")
    (theirs / "x.partial").write_text("theirs")
    CASES[name](out, theirs)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=r"\.moe4.*(did not make|not a folder of moe4's)"):
        ReleaseFolder(out, resume=resume).open()
    assert tree(tmp_path) == before


def test_what_comes_into_it_later_stays_too(tmp_path: Path) -> None:
    folder = ReleaseFolder(tmp_path / "out", resume=False)
    folder.open().start(Begin(**BEGIN))
    (folder.work / "notes.txt").write_text("theirs")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=r"notes\.txt is a file that moe4 did not make"):
        folder.remove_work_folder()
    assert tree(tmp_path) == before
    (folder.work / "notes.txt").unlink()
    folder.remove_work_folder()
    assert not folder.work.exists()
    folder.close()


def test_a_killed_runs_leftovers_go(tmp_path: Path) -> None:
    work = tmp_path / "out" / ".moe4"
    work.mkdir(parents=True)
    names = (
        ".moe4-abc_1.partial",
        "hidden-00001.partial",
        "inputs-00001.partial",
        "total-00001.partial",
        "model-00001-of-00004.safetensors.partial",
    )
    for name in (*names, "probe-bf16-hidden", "layer-00000.json", "rest.json", "hidden-00000.bin"):
        (work / name).write_text("")
    folder = ReleaseFolder(tmp_path / "out", resume=True)
    folder.open()
    assert not list(work.glob("*.partial"))
    folder.remove_work_folder()
    folder.close()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(OutputError, match="out is a link to nowhere, which does not exist"):
        ReleaseFolder(tmp_path / "out", resume=False)


SHARD = {"shard": "model-00001-of-00002.safetensors", "sha256": "0" * 64, "bytes": 1, "kept": {}}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["[]"], "line 1, is damaged: the file must be an object, found"),
        ([{"shard": 1}], "line 1, is damaged: begin is missing"),
        (
            [{"begin": {**BEGIN, "environment": {**ENVIRONMENT, "threads": 0}}}],
            "line 1, is damaged: begin.environment.threads must be",
        ),
        ([{"begin": {**BEGIN, "source": "x"}}], "line 1, is damaged: begin.source must be like"),
        ([{"begin": BEGIN}, {"shard": "x"}], "line 2, is damaged: sha256 is missing"),
        (
            [{"begin": BEGIN}, {**SHARD, "bytes": "many"}],
            "line 2, is damaged: bytes must be a whole number, found",
        ),
        ([{"begin": BEGIN}, {**SHARD, "shard": "../x"}], "line 2, is damaged: shard must be like"),
        ([{"begin": BEGIN}, {**SHARD, "kept": {"/etc/passwd": "0" * 64}}], "line 2, is damaged: kept"),
        ([{"begin": BEGIN}, SHARD, "{"], "Expecting property name"),
        (["[" * 100_000], "nested deeper than"),
        ([{"begin": {**BEGIN, "environment": {**ENVIRONMENT, "threads": 10**6}}}], "threads must be at most"),
    ],
)
def test_a_damaged_journal_is_one_line(lines: list[object], words: str, tmp_path: Path) -> None:
    work = tmp_path / "out" / ".moe4"
    work.mkdir(parents=True)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (work / "journal.jsonl").write_text("\n".join(text) + "\n")
    with pytest.raises(ResumeError) as caught:
        ReleaseFolder(tmp_path / "out", resume=True).open()
    message = str(caught.value)
    assert words in message
    assert message.startswith(f"{work / 'journal.jsonl'}, line ")
    assert message.endswith("; begin again in an empty folder")
    assert "\n" not in message


def test_a_journal_of_another_version_says_so(tmp_path: Path) -> None:
    """What a later version adds is passed over, what it lacks is named with the version that can go on."""
    work = tmp_path / "out" / ".moe4"
    work.mkdir(parents=True)
    pin = {"repository": "a/b", "revision": "main", "commit": "0" * 40, "added": 1}
    later = {**BEGIN, "moe4": "9.9", "hub": pin, "added": 1, "environment": {**ENVIRONMENT, "added": 1}}
    (work / "journal.jsonl").write_text(json.dumps({"begin": later}) + "\n")
    begin = Journal(work).begin
    assert begin is not None and begin.hub is not None and begin.hub.commit == "0" * 40
    del later["environment"]
    (work / "journal.jsonl").write_text(json.dumps({"begin": later}) + "\n")
    with pytest.raises(ResumeError) as caught:
        Journal(work)
    assert str(caught.value) == (
        f"{work / 'journal.jsonl'}, line 1, cannot be read: begin.environment is missing (moe4 9.9 wrote it, "
        f"this is {__version__}); use moe4 9.9, or begin again in an empty folder"
    )


def test_a_journal_larger_than_any_is_one_line(tmp_path: Path) -> None:
    """A sparse file of a terabyte: it is not read."""
    path = tmp_path / "journal.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ResumeError, match=r"has 1099511627776 bytes; at most .* begin again"):
        Journal(tmp_path)
    assert read_begin(tmp_path) is None


def test_a_link_is_no_committed_shard(tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.write_bytes(b"x")
    sha256 = hashlib.sha256(b"x").hexdigest()
    (tmp_path / "shard").symlink_to(away)
    assert is_unchanged(away, sha256, 1)
    assert not is_unchanged(tmp_path / "shard", sha256, 1)


def test_a_file_that_has_grown_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(b"x")
    os.truncate(path, 1 << 40)
    assert not is_unchanged(path, hashlib.sha256(b"x").hexdigest(), 1)


def test_the_journal_is_the_first_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while it clears its work folder is known to be finished."""
    work = tmp_path / ".moe4"
    work.mkdir()
    for name in ("hidden-00000.bin", "journal.jsonl", "layer-00000.json", "lock"):
        (work / name).touch()

    def killed(path: Path, *_: object, **__: object) -> None:
        assert path.name != "journal.jsonl"
        raise KeyboardInterrupt

    real = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path, **kw: (real if path.name == "journal.jsonl" else killed)(path, **kw)
    )
    with pytest.raises(KeyboardInterrupt):
        ReleaseFolder(tmp_path, resume=True).remove_work_folder()
    assert not (work / "journal.jsonl").exists()
    assert len(list(work.iterdir())) == 3


def test_room_is_required_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe4.checkpoint.release_folder.free_bytes", lambda _: 5000)
    require_space(tmp_path, 5000)
    with pytest.raises(DiskSpaceError, match=r"needs 5\.0 kB and its volume has 5\.0 kB free"):
        require_space(tmp_path, 5001)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (512e6, "512.0 MB"),
        (5.46e11, "546.0 GB"),
        (1.0269e12, "1.03 TB"),
        (2.5e15, "2500.00 TB"),
        (-2e6, "-2.0 MB"),
    ],
)
def test_sizes_as_people_read_them(size: float, text: str) -> None:
    assert format_bytes(size) == text
