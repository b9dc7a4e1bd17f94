"""A file is whole or as it was, and nothing is written anywhere but where it was asked for."""

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moe4.errors import DiskSpaceError, OutputError
from moe4.files.durable import append_line, check_output, create_file, write_file, write_output


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_link(path: Path) -> None:
    path.with_name("aim").write_text("theirs")
    path.symlink_to("aim")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a link": (make_link, "a link"),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere"), "a link"),
    "a folder": (Path.mkdir, "a folder"),
    "a FIFO": (os.mkfifo, "a FIFO"),
    "a socket": (make_socket, "a socket"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_regular_file_is_refused_and_left_alone(name: str, tmp_path: Path) -> None:
    make, kind = ODD[name]
    path = tmp_path / "x"
    make(path)
    before = (path.lstat().st_ino, names(tmp_path))
    with pytest.raises(OutputError, match=rf"x cannot be written: it is {kind}; name a regular file"):
        write_output(path, "mine")
    assert before == (path.lstat().st_ino, names(tmp_path))
    if name == "a link":
        assert (tmp_path / "aim").read_text() == "theirs"


def test_a_device_is_refused() -> None:
    with pytest.raises(OutputError, match="/dev/null cannot be written: it is a device"):
        check_output(Path("/dev/null"))


def test_places_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"there is no folder .*none; make it first"):
        check_output(tmp_path / "none" / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"x cannot be written: Not a directory"):
        check_output(tmp_path / "file" / "x")
    with pytest.raises(OutputError, match="File name too long"):
        check_output(tmp_path / ("x" * 300))


def test_modes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    mask = os.umask(0o027)
    try:
        write_output(path, "one")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o751)
    write_output(path, "two")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("two", 0o751)
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path if call == "replace" else os, call, no_room)
    with pytest.raises(DiskSpaceError, match="x cannot be written: the volume is full; nothing there"):
        write_output(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_the_kernel_refuses_a_longer_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from pathlib import Path; from moe4.files.durable import write_output\n"
        "from moe4.errors import DiskSpaceError\n"
        "try: write_output(Path(sys.argv[1]), 'n' * 5000)\n"
        "except DiskSpaceError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "ulimit -f allows; nothing there was changed" in result.stdout, result.stderr
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_partial_file_of_others_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "x.partial").write_text("theirs")
    write_output(tmp_path / "x", "mine")
    assert (tmp_path / "x.partial").read_text() == "theirs"


def test_work_files_are_made_anew(tmp_path: Path) -> None:
    """A link or a second name of another file at their place is taken away, not written through."""
    (tmp_path / "aim").write_text("theirs")
    for make in (Path.symlink_to, Path.hardlink_to):
        make(tmp_path / "x", tmp_path / "aim")
        os.close(create_file(tmp_path / "x"))
        assert (tmp_path / "x").read_bytes() == b""
        assert (tmp_path / "aim").read_text() == "theirs"
        (tmp_path / "x").unlink()
    (tmp_path / "x").symlink_to("aim")
    with pytest.raises(OSError, match="symbolic links"):
        append_line(tmp_path / "x", "line")
    work = tmp_path / "work"
    work.mkdir()
    write_file(tmp_path / "x", b"mine", work)
    assert not (tmp_path / "x").is_symlink()
    assert (tmp_path / "aim").read_text() == "theirs"
