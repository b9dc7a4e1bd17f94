"""Shards that come as they are needed: the folder's bytes, never more than three, whatever the hub does."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import release_tools
from hypothesis import given
from hypothesis import strategies as st
from release_tools import Interrupted, contents
from stand_in_hub import REPOSITORY, StandInHub, commit_of, split_in_shards

import moe4
from moe4.checkpoint import release_folder
from moe4.checkpoint.journal import CommittedShard, Journal
from moe4.checkpoint.report_file import Report
from moe4.checkpoint.source import Checkpoint
from moe4.errors import ArgumentError, DiskSpaceError, HubError, ResumeError
from moe4.hub.locate import locate_source
from moe4.hub.window import MOST_HELD, ReadingOrder
from moe4.quantize.planning.request import Request
from moe4.quantize.reporting.progress import ProgressReporter
from moe4.quantize.run.pipeline import quantize
from moe4.quantize.transfer.ranks import Ranks
from moe4.recipe import Calibration, Gptq, Recipe

RECIPE = Recipe(
    group_size=32,
    gptq=Gptq(scale_candidates=2),
    calibration=Calibration(num_sequences=4, max_sequence_tokens=64),
)
SMALL_PIECES = """
import runpy
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 16 << 10  # of 10 MiB, in which a small shard is on its way in memory alone
runpy.run_module("moe4", run_name="__main__", alter_sys=True)
"""
SHARD = "model-0000{}-of-00006.safetensors"


def run(source: Path | str, out: Path, calibration: Path, **options: object) -> Report:
    request = Request(source=source, out=out, recipe=RECIPE, calibration=calibration, **options)  # type: ignore[arg-type]
    return quantize(request, ProgressReporter())


def without_hub(found: dict[str, bytes], pin: dict[str, str]) -> dict[str, bytes]:
    """Return a release's files, the report without what the hub's commit adds to it."""
    report = json.loads(found["moe4-report.json"])
    assert report["source"].pop("hub") == pin
    return {**found, "moe4-report.json": json.dumps(report).encode()}


@contextmanager
def watched(work: Path, pattern: str = "source-*") -> Iterator[list[set[str]]]:
    """Yield what lies of the source in a work folder, at every moment that is looked at."""
    seen: list[set[str]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            try:
                seen.append({path.name for path in work.glob(pattern)})
            except OSError:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def whole(six: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The release of a run from the folder."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(six, out, calibration)
    return contents(out)


@pytest.fixture
def pin(six: Path) -> dict[str, str]:
    return {"repository": REPOSITORY, "revision": "main", "commit": commit_of(six)}


def test_headers_alone_are_the_folder(hub: StandInHub, six: Path, tmp_path: Path) -> None:
    found = locate_source(REPOSITORY, stream_to=tmp_path / "work")
    streamed, there = Checkpoint(found.folder, found.stream), Checkpoint(six)
    assert streamed.specs == there.specs
    assert streamed.digest() == there.digest()
    name = "model.embed_tokens.weight"
    assert b"".join(streamed.iterate(name)) == b"".join(there.iterate(name))
    assert not (tmp_path / "work").exists()


def test_a_run_holds_three_shards_and_gives_the_folders_bytes(
    hub: StandInHub, calibration: Path, tmp_path: Path, whole: dict[str, bytes], pin: dict[str, str]
) -> None:
    out = tmp_path / "out"
    with watched(out / ".moe4") as seen:
        run(REPOSITORY, out, calibration, stream=True)
    assert without_hub(contents(out), pin) == whole
    assert max(map(len, seen)) == MOST_HELD
    assert {name for names in seen for name in names} >= {"source-00004.safetensors"}
    assert not any((tmp_path / "cache").rglob("*.safetensors"))


def test_a_release_is_compared_with_its_source_shard_by_shard(
    hub: StandInHub, six: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    run(six, out, calibration)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with watched(temporary, "*/source-*") as seen:
        found = moe4.verify(out, REPOSITORY, stream=True)
    assert found == moe4.verify(out, six)
    assert found.ok and found.worst_weight_errors
    assert 0 < max(map(len, seen)) <= MOST_HELD
    assert not any(temporary.iterdir()) and not any((tmp_path / "cache").rglob("*.safetensors"))
    others = split_in_shards(six, tmp_path / "others", 2, lambda _, name: int("layers.1" in name))
    hub.repositories["someone/others"] = [others]
    (problem,) = moe4.verify(out, "someone/others", stream=True).problems
    assert "describes another source" in problem
    with pytest.raises(HubError, match="leave stream out"):
        moe4.verify(out, six, stream=True)
    with pytest.raises(ArgumentError, match="no source is given"):
        moe4.verify(out, stream=True)
    monkeypatch.setattr(release_folder, "free_bytes", lambda _: 1000)
    with pytest.raises(DiskSpaceError, match=r"1\.0 kB free"):
        moe4.verify(out, REPOSITORY, stream=True)
    assert not any(temporary.iterdir())


def test_tensors_in_any_shard(
    hub: StandInHub, small_source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Every layer reads every shard, back and forth: three are held, and fetched again and again."""
    generator = random.Random(3)
    mixed = split_in_shards(small_source, tmp_path / "mixed", 5, lambda *_: generator.randrange(5))
    hub.repositories["someone/mixed"] = [mixed]
    with watched(tmp_path / "out" / ".moe4") as seen:
        run("someone/mixed", tmp_path / "out", calibration, stream=True)
    assert max(map(len, seen)) == MOST_HELD
    found = contents(tmp_path / "out")
    same = [name for name in found if name.endswith(".safetensors")]
    assert {name: found[name] for name in same} == {name: whole[name] for name in same}


def test_a_bad_network(
    hub: StandInHub, calibration: Path, tmp_path: Path, whole: dict[str, bytes], pin: dict[str, str]
) -> None:
    """Answers that break off, are wrong, are refused, or come from a place whose signature has expired."""
    faults = hub.faults
    faults.cut = {SHARD.format(1): [100_000, 50_000], SHARD.format(5): [0, 1000]}
    faults.garble = {SHARD.format(2): 1}
    faults.status = {SHARD.format(3): [503, 500, 429, 503]}
    faults.signature_uses = 2
    faults.bytes_per_second = 4_000_000
    out = tmp_path / "out"
    with watched(out / ".moe4") as seen:
        run(REPOSITORY, out, calibration, stream=True)
    assert without_hub(contents(out), pin) == whole
    assert max(map(len, seen)) <= MOST_HELD
    assert not any(faults.cut.values())
    assert faults.garble == {SHARD.format(2): 0}


def test_a_shard_that_is_always_wrong(hub: StandInHub, calibration: Path, tmp_path: Path) -> None:
    hub.faults.garble = {SHARD.format(2): 1000}
    with pytest.raises(
        HubError, match=f"{SHARD.format(2)} of .* was downloaded twice, and its bytes do not have"
    ):
        run(REPOSITORY, tmp_path / "out", calibration, stream=True)
    assert not (tmp_path / "out" / "config.json").exists()


def test_git_checksums(hub: StandInHub, tmp_path: Path, calibration: Path) -> None:
    hub.faults.plain_etags = True
    hub.faults.garble = {SHARD.format(3): 1000}
    with pytest.raises(HubError, match="was downloaded twice, and its bytes do not"):
        run(REPOSITORY, tmp_path / "out", calibration, stream=True)


def test_a_server_without_ranges(hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.no_ranges = True
    monkeypatch.setattr("moe4.hub.remote_file.WHOLE_BYTES", 100_000)
    monkeypatch.setattr("moe4.hub.stream.WHOLE_BYTES", 100_000)
    found = locate_source(REPOSITORY, stream_to=tmp_path / "work")
    with pytest.raises(HubError, match="does not answer range requests; download the checkpoint"):
        Checkpoint(found.folder, found.stream).digest()


def interrupt_after(count: int, out: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a streamed run that ends after so many shards."""
    real, calls = Journal.commit, []

    def commit(self: Journal, shard: CommittedShard) -> None:
        real(self, shard)
        calls.append(shard)
        if len(calls) == count:
            raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Journal, "commit", commit)
        run(REPOSITORY, out, calibration, stream=True)


def test_a_moved_branch_does_not_mix_revisions(
    hub: StandInHub,
    six: Path,
    calibration: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    pin: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, moved = tmp_path / "out", split_in_shards(six, tmp_path / "moved", 6)
    (moved / "README.md").write_text("a new card\n")  # nothing that a release takes
    interrupt_after(2, out, calibration, monkeypatch)
    hub.repositories[REPOSITORY] = [six, moved]
    with pytest.raises(ResumeError, match=f"was begun with {REPOSITORY} at commit {commit_of(six)}, not"):
        run(REPOSITORY, out, calibration, stream=True, resume=True, revision=commit_of(moved))
    hub.log.clear()
    run(REPOSITORY, out, calibration, stream=True, resume=True)
    assert without_hub(contents(out), pin) == whole
    assert not any(commit_of(moved) in path for _, path, _ in hub.log)
    again = run(REPOSITORY, out, calibration, stream=True, resume=True)
    assert again.source.hub is not None
    assert again.source.hub.as_dict() == pin


def test_a_resumed_run_fetches_what_it_still_needs(
    hub: StandInHub, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupt_after(3, out, calibration, monkeypatch)
    before = {number: hub.num_whole(SHARD.format(number)) for number in range(1, 7)}
    run(REPOSITORY, out, calibration, stream=True, resume=True)
    after = {number: hub.num_whole(SHARD.format(number)) for number in range(1, 7)}
    assert after[2] == before[2]
    assert after[3] == before[3]


def test_a_run_begun_with_a_folder_is_not_streamed(
    hub: StandInHub, six: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_tools.interrupt_after(1, six, calibration, tmp_path / "out", RECIPE, monkeypatch)
    with pytest.raises(ResumeError, match=r"was begun with a folder, not .*; resume with"):
        run(REPOSITORY, tmp_path / "out", calibration, stream=True, resume=True)


def test_streaming_is_for_the_hub_and_for_one_process(
    hub: StandInHub, six: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match=r"stream is for a checkpoint on the hub; .* is a folder"):
        run(six, tmp_path / "out", calibration, stream=True)
    ranks = Ranks(rank=0, size=2)
    monkeypatch.setattr(ranks, "connect", lambda **_: None)
    request = Request(source=REPOSITORY, out=tmp_path / "out", recipe=RECIPE, stream=True)
    with pytest.raises(HubError, match="stream is for one process, and this run has 2"):
        quantize(request, ProgressReporter(), ranks)
    assert not (tmp_path / "out").exists()


STEPS = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30), min_size=1, max_size=12)


@given(STEPS)
def test_the_window_has_what_is_read_next_and_not_more(steps: list[list[str]]) -> None:
    """Whatever is read in the expected order is in the window, and no more is fetched than was promised."""
    order = ReadingOrder(steps, dict.fromkeys("abcdefgh", 10))
    fetched, held = 0, set[str]()
    for step in steps:
        for name in step:
            order.read(name)
            fetched += 10 * len(set(order.window()) - held)
            held = set(order.window())
            assert name in held
            assert len(held) <= MOST_HELD
            assert 10 * len(held) <= order.peak_bytes()
        order.step_done()
    distinct = len({name for step in steps for name in step})
    assert fetched <= 10 * len(order.downloads()) == pytest.approx(10 * distinct * order.excess())
    assert order.window() == ()


def test_shards_in_order_need_three() -> None:
    order = ReadingOrder([["a", "b"], ["b", "c"], ["c", "d", "e", "f"], ["a"]], dict.fromkeys("abcdef", 1))
    assert order.downloads() == ["a", "b", "c", "d", "e", "f", "a"]


@pytest.mark.timeout(1200)
def test_killed_twice(
    hub: StandInHub, calibration: Path, tmp_path: Path, whole: dict[str, bytes], pin: dict[str, str]
) -> None:
    """Each time while a shard is on its way, the second time further than before."""
    out, work = tmp_path / "out", tmp_path / "out" / ".moe4"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "group_size = 32\n[gptq]\nscale_candidates = 2\n"
        "[calibration]\nnum_sequences = 4\nmax_sequence_tokens = 64\n"
    )
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SMALL_PIECES, "quantize", REPOSITORY, str(out), "--stream", "--resume"]
    command += ["--recipe", str(recipe), "--calibration", str(calibration)]
    hub.faults.bytes_per_second = 500_000
    with watched(work) as seen:
        for _ in range(2):
            before = {path.name: path.stat().st_size for path in work.glob("*.incomplete")}
            with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
                while process.poll() is None and not any(
                    path.stat().st_size > before.get(path.name, 0) for path in work.glob("*.incomplete")
                ):
                    time.sleep(0.01)
                process.send_signal(signal.SIGKILL)
            assert process.returncode == -signal.SIGKILL
        hub.faults.bytes_per_second = 0
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert without_hub(contents(out), pin) == whole
    assert max(map(len, seen)) <= MOST_HELD
