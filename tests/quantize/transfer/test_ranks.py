"""Several processes write the bytes of one; one that dies ends the run, and any number of them resumes it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from release_tools import Forks, assert_same, contents

from moe4.quantize.transfer.ranks import Parcel, Ranks
from moe4.recipe import ALL_TARGETS, Calibration, Gptq, Recipe, override

RECIPE = Recipe(
    group_size=32,
    gptq=Gptq(scale_candidates=2),
    calibration=Calibration(num_sequences=8, max_sequence_tokens=64),
)
KILLED = -signal.SIGKILL
Releases = dict[str, dict[str, bytes]]


def run(forks: Forks, source: Path, out: Path, recipe: Recipe, calibration: Path, **request: Any) -> Any:
    return forks.run(source, out, recipe, calibration, few_prompts=True, **request)


@pytest.fixture(scope="module")
def whole(
    small_source: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory, forks: Forks
) -> dict[str, bytes]:
    """A release by one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(forks, small_source, out, RECIPE, calibration)["ranks"][0]["code"] == 0
    return contents(out)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_write_the_bytes_of_one(
    size: int, small_source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes], forks: Forks
) -> None:
    out = tmp_path / "out"
    first, *others = run(forks, small_source, out, RECIPE, calibration, size=size)["ranks"]
    assert first["code"] == 0, first["log"]
    assert len(re.findall(r"^layer \d \(\d of 3 done\): ", first["log"], re.MULTILINE)) == 3
    assert [(other["code"], other["log"]) for other in others] == [(0, "")] * (size - 1)
    assert_same(contents(out), whole)
    report = json.loads((out / "moe4-report.json").read_text())
    assert report["timing"]["num_ranks"] == [size] * 3


def test_ranks_with_activations_in_memory_write_the_bytes_of_one(
    small_source: Path, calibration: Path, tmp_path: Path, whole: dict[str, bytes], forks: Forks
) -> None:
    """As on GPUs, but for the GPUs: rank 0 sends what the others read, and commits behind the next layer."""
    faults = {str(rank): {"as_on_gpus": True} for rank in range(2)}
    out = tmp_path / "out"
    ranks = run(forks, small_source, out, RECIPE, calibration, size=2, faults=faults)["ranks"]
    assert [rank["code"] for rank in ranks] == [0, 0], ranks[0]["log"] + ranks[1]["log"]
    assert_same(contents(out), whole)


@pytest.mark.parametrize(
    "recipe",
    [override(RECIPE, targets=ALL_TARGETS), Recipe(method="rtn", group_size=32, targets=ALL_TARGETS)],
    ids=["gptq on all", "rtn on all"],
)
def test_other_recipes(
    recipe: Recipe, small_source: Path, calibration: Path, tmp_path: Path, forks: Forks
) -> None:
    found = []
    for size in (1, 3):
        out = tmp_path / f"out-{size}"
        answer = run(forks, small_source, out, recipe, calibration, size=size)
        assert [rank["code"] for rank in answer["ranks"]] == [0] * size, answer
        found.append(contents(out))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("dying", "after"), [(1, 0), (1, 3), (0, 2)], ids=["first expert", "second layer", "rank 0"]
)
def test_a_rank_that_dies_ends_the_run(
    dying: int,
    after: int,
    small_source: Path,
    calibration: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    forks: Forks,
) -> None:
    """Each of two ranks has two experts a layer; layers 2 and 3 have some."""
    out = tmp_path / "out"
    faults = {str(dying): {"expert": after}}
    answer = run(forks, small_source, out, RECIPE, calibration, size=2, faults=faults)
    assert answer["ranks"][dying]["code"] == KILLED
    survivor = answer["ranks"][1 - dying]
    assert survivor["code"] == 2
    words = rf"rank {dying} died or stopped answering \(.*\); the committed layers are kept: run again with"
    last = survivor["log"].splitlines()[-1]
    assert last.startswith("RankError: ")
    assert re.search(words, last) or (dying == 0 and "a rank died or stopped answering" in last), last
    assert "Traceback" not in survivor["log"]
    assert not (out / "config.json").exists()
    num_done = 1 if after < 2 else 2
    journal = (out / ".moe4" / "journal.jsonl").read_text().splitlines()
    assert len(journal) == 1 + num_done
    answer = run(forks, small_source, out, RECIPE, calibration, size=3 if dying else 1, resume=True)
    assert {rank["code"] for rank in answer["ranks"]} == {0}, answer
    assert f"continuing after {num_done} of 4 shards" in answer["ranks"][0]["log"]
    assert_same(contents(out), whole)


def test_a_rank_that_hangs_ends_the_run(
    small_source: Path, calibration: Path, tmp_path: Path, forks: Forks
) -> None:
    faults = {"0": {"timeout": 3}, "1": {"timeout": 3, "expert": 0, "signal": "SIGSTOP"}}
    answer = run(
        forks, small_source, tmp_path / "out", RECIPE, calibration, size=2, faults=faults, left_over=[1]
    )
    first = answer["ranks"][0]
    assert first["code"] == 2
    assert "RankError: rank 1 died or stopped answering" in first["log"].splitlines()[-1]


def test_a_rank_that_fails_says_why(
    small_source: Path, calibration: Path, tmp_path: Path, forks: Forks
) -> None:
    overrides = {"1": {"source": str(tmp_path / "nowhere")}}
    answer = run(forks, small_source, tmp_path / "out", RECIPE, calibration, size=2, overrides=overrides)
    assert [rank["code"] for rank in answer["ranks"]] == [2, 2]
    assert re.search(r"CheckpointError: rank 1 on \S+: .*nowhere does not exist", answer["ranks"][1]["log"])


def test_ranks_that_see_other_inputs_are_refused(
    small_source: Path, calibration: Path, tmp_path: Path, forks: Forks
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "short"}')
    overrides = {"1": {"calibration": str(other)}}
    answer = run(forks, small_source, tmp_path / "out", RECIPE, calibration, size=2, overrides=overrides)
    assert answer["ranks"][0]["code"] == 2
    words = "RankError: rank 1 sees another calibration data than rank 0; give every node the same files"
    assert words in answer["ranks"][0]["log"]
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_keeps_its_threads_and_says_so(
    small_source: Path, calibration: Path, tmp_path: Path, forks: Forks
) -> None:
    out = tmp_path / "out"
    run(forks, small_source, out, RECIPE, calibration, faults={"0": {"expert": 0}})
    journal = out / ".moe4" / "journal.jsonl"
    threads = len(os.sched_getaffinity(0)) + 1
    text = journal.read_text()
    assert '"threads": 1}' in text
    journal.write_text(text.replace('"threads": 1}', f'"threads": {threads}}}'))
    answer = run(forks, small_source, out, RECIPE, calibration, size=2, resume=True)
    assert [rank["code"] for rank in answer["ranks"]] == [0, 0], answer
    words = f"note: the run began with {threads} threads a rank and keeps that number; "
    assert words in answer["ranks"][0]["log"]


def test_a_finished_release_is_found_by_all_ranks(
    small_source: Path, calibration: Path, tmp_path: Path, forks: Forks
) -> None:
    for resume in (False, True):
        answer = run(forks, small_source, tmp_path / "out", RECIPE, calibration, size=2, resume=resume)
        assert [rank["code"] for rank in answer["ranks"]] == [0, 0]


class TestTorchrun:
    """The real launcher, with the real command line."""

    @staticmethod
    def start(source: Path, out: Path, calibration: Path, *options: str, resume: bool = False) -> Any:
        recipe = out.parent / "recipe.toml"
        recipe.write_text(
            "group_size = 32\n[gptq]\nscale_candidates = 2\n"
            "[calibration]\nnum_sequences = 8\nmax_sequence_tokens = 64\n"
        )
        command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "moe4", "quantize"]
        command += [str(source), str(out), "--recipe", str(recipe), "--calibration", str(calibration)]
        command += ["--resume"] if resume else []
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def test_a_rank_that_is_killed_and_two_nodes_that_go_on(
        self, small_source: Path, calibration: Path, tmp_path: Path, forks: Forks
    ) -> None:
        assert forks.run(small_source, tmp_path / "whole", RECIPE, calibration)["ranks"][0]["code"] == 0
        out = tmp_path / "out"
        run = self.start(small_source, out, calibration, "--standalone", "--nproc-per-node", "2")
        journal = out / ".moe4" / "journal.jsonl"
        while run.poll() is None and not (journal.is_file() and journal.read_bytes().count(b"\n") >= 2):
            time.sleep(0.001)
        os.kill(worker_of(run.pid, rank=1), signal.SIGKILL)
        printed, err = run.communicate(timeout=120)
        assert run.returncode == 1
        assert printed == ""
        (line,) = re.findall(r"^moe4: error: .*$", err, re.MULTILINE)
        assert "died" in line
        assert "the committed layers are kept: run again with --resume" in line
        assert not (out / "config.json").exists()

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
        options = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", endpoint)
        nodes = [self.start(small_source, out, calibration, *options, resume=True) for _ in range(2)]
        answers = [node.communicate(timeout=120) for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], answers
        assert "".join(printed for printed, _ in answers).count("size ") == 1
        assert_same(contents(out), contents(tmp_path / "whole"))


def worker_of(pid: int, rank: int) -> int:
    """Return the process of a rank that a launcher has started."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"rank {rank} is not there")


def test_without_a_launcher_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    ranks = Ranks.from_environment()
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.may_report()
    results = list(ranks.spread(3, lambda number: Parcel(facts={"square": number**2})))
    assert [(number, parcel.facts["square"]) for number, parcel in results] == [(0, 0), (1, 1), (2, 4)]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_rank_0_sits_out_every_third_round_where_it_receives(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number is one rank's, and in the rounds that rank 0 sits out the others have one turn each."""
    monkeypatch.setattr(Ranks, "receives_ahead", True)
    count = 6 * (3 * size - 1) if size > 1 else 12
    owned = [Ranks(rank, size).own_numbers(count, at_once=2) for rank in range(size)]
    assert sorted(number for numbers in owned for number in numbers) == list(range(count))
    assert [len(numbers) for numbers in owned] == [12] + [18] * (size - 1)


def test_sums_are_taken_in_order() -> None:
    """In another order these float32 terms have another sum."""
    terms = [1e8, 1.0, -1e8, 1.0]
    total = Ranks().sum_in_order(4, lambda n: Parcel(facts={"n": n}, tensors={"x": torch.tensor([terms[n]])}))
    assert total is not None
    assert total.facts == {"n": 6}
    assert float(total.tensors["x"]) == 1.0
    assert Ranks().sum_in_order(0, lambda _: Parcel()) is None
