"""A run with its experts as a GPU takes them, beside the CPU's; `test_gpu_stream.py` runs this in a process.

The device is the CPU, with Triton's interpreter for the kernels: everything but pinned memory, streams and
the choice of the class is what a GPU runs.
"""

import json
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import write_source
from model_fixtures import random_state, reference_config, write_checkpoint
from safetensors.torch import load_file

from moe4.checkpoint.report_file import ExpertRecord, Report
from moe4.errors import EvaluationError
from moe4.quantize.gpu import batches as gpu_batches
from moe4.quantize.gpu.solver import DeviceSolver
from moe4.quantize.layer.running_probe import RunningProbe
from moe4.quantize.planning.request import Request
from moe4.quantize.run.pipeline import quantize
from moe4.recipe import Calibration, Gptq, Recipe

SHAPE = {
    "num_hidden_layers": 3,
    "n_routed_experts": 3,
    "num_experts_per_tok": 2,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 64,
    "qk_rope_head_dim": 32,
}
TEXT = "Twelve engineers share one long table and every one of them has a lamp. "


@pytest.fixture(autouse=True)
def _all_rows_in_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes as long for one row as for many; tests/gptq/gpu_cases.py has parts of them."""
    for place in ("columns.ROWS", "columns.REFIT_ROWS", "scales.ROWS", "halves.SPLIT_ROWS"):
        monkeypatch.setattr(f"moe4.gptq.gpu.{place}", 64)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("m") / "s")


def make_source(folder: Path, **changes: int) -> Path:
    config = reference_config(**{**SHAPE, **changes})
    write_checkpoint(folder, config, random_state(config, seed=3))
    lines = [json.dumps({"text": TEXT[number:] * 2}) for number in range(8)]
    (folder / "lines.jsonl").write_text("\n".join(lines))
    return folder


def run(source: Path, out: Path) -> Report:
    recipe = Recipe(
        group_size=32,
        gptq=Gptq(scale_candidates=2, descent_sweeps=1),
        calibration=Calibration(num_sequences=8, max_sequence_tokens=64, compute_dtype="float32"),
    )
    request = Request(source=source, out=out, recipe=recipe, calibration=source / "lines.jsonl")
    return quantize(request)


def records(report: Report) -> list[ExpertRecord]:
    return [expert for layer in report.layers for expert in layer.experts]


def test_a_run_in_batches_is_the_cpus_up_to_ties(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of two with three experts, so that one is filled up; activations resident and not.

    Of two layers with experts the second stands on the first one's sum.
    """
    expected = run(source, tmp_path / "cpu")
    used: list[str] = []

    class Counted(DeviceSolver):
        def __init__(self, *arguments: Any) -> None:
            used.append("gpu")
            super().__init__(*arguments)

    monkeypatch.setattr(import_module("moe4.quantize.run.layer"), "solver_class", lambda _: Counted)
    monkeypatch.setattr(import_module("moe4.quantize.gpu.batch_size"), "MOST_EXPERTS", 2)
    found = {}
    for name, free in (("streamed", 0), ("resident", 1 << 40)):
        monkeypatch.setattr(
            import_module("moe4.quantize.transfer.device_memory"), "free_bytes", lambda _, free=free: free
        )
        found[name] = run(source, tmp_path / name)
    assert used == ["gpu"] * 4
    for ours, theirs in zip(records(found["streamed"]), records(expected), strict=True):
        assert ours.num_tokens == theirs.num_tokens
        for mine, other in ((ours.gate, theirs.gate), (ours.up, theirs.up), (ours.down, theirs.down)):
            assert mine.method == other.method == "gptq"
            # A code that ties in float32 may go either way, and then the rest of its row with it.
            assert mine.error == pytest.approx(other.error, rel=0.03)
            assert mine.rtn_error == pytest.approx(other.rtn_error, rel=0.01)
    shards = {path.name: path.read_bytes() for path in (tmp_path / "streamed").glob("*.safetensors")}
    assert shards == {path.name: path.read_bytes() for path in (tmp_path / "resident").glob("*.safetensors")}
    for layer in (2, 3):
        ours, theirs = (
            load_file(next((tmp_path / n).glob(f"*0000{layer}-of*"))) for n in ("streamed", "cpu")
        )
        assert ours.keys() == theirs.keys()
        words = [name for name in ours if name.endswith("weight_packed")]
        assert words
        same = torch.cat([(ours[name] == theirs[name]).flatten() for name in words])
        assert same.float().mean() > 0.8


def test_every_thread_of_a_run_begins_with_the_runs_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current GPU is a thread's own: a kernel that a thread launches without it goes to GPU 0."""
    told: set[int] = set()
    worked: set[int] = set()

    def note(owner: Any, name: str, seen: set[int]) -> None:
        real = getattr(owner, name)

        def noted(*arguments: Any) -> Any:
            seen.add(threading.get_ident())
            return real(*arguments)

        monkeypatch.setattr(owner, name, noted)

    note(gpu_batches, "use_device", told)
    for name in ("_read_batch", "_solve_batch"):
        note(gpu_batches.Batches, name, worked)
    monkeypatch.setattr(import_module("moe4.quantize.run.layer"), "solver_class", lambda _: DeviceSolver)
    run(make_source(tmp_path / "source", num_hidden_layers=2, n_routed_experts=2), tmp_path / "out")
    assert len(worked) >= 2
    assert worked <= told


def test_solvers_that_wait_for_the_probe_hear_of_its_failure(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe runs up to the experts while the first are solved; if it fails, nobody waits for it."""
    attend = RunningProbe.attend
    solving = threading.Event()

    def fail(probe: RunningProbe, layer: int) -> None:
        if layer == 0:  # it has no experts
            attend(probe, layer)
            return
        assert solving.wait(60)  # the first batch is solved meanwhile
        raise EvaluationError("the probe fails here")

    real = gpu_batches.Batches._solve_batch

    def noted(*arguments: Any) -> Any:
        solving.set()
        return real(*arguments)

    monkeypatch.setattr(import_module("moe4.quantize.gpu.batch_size"), "MOST_EXPERTS", 2)
    monkeypatch.setattr(RunningProbe, "attend", fail)
    monkeypatch.setattr(gpu_batches.Batches, "_solve_batch", noted)
    monkeypatch.setattr(import_module("moe4.quantize.run.layer"), "solver_class", lambda _: DeviceSolver)
    with pytest.raises(EvaluationError, match="the probe fails here"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("nemotron_h", {}),
        (
            "llama4_text",
            {"num_hidden_layers": 2, "moe_layers": [0, 1], "num_local_experts": 3, "intermediate_size": 32},
        ),
    ],
)
def test_experts_of_another_kind_in_batches(
    family: str, sizes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts without a gate, and experts that have an input of their own for each token.

    A code that ties in the first layer with experts may send a token elsewhere in the second.
    """
    folder = write_source(tmp_path / "source", family, **sizes)
    (folder / "lines.jsonl").write_text("\n".join(json.dumps({"text": TEXT[number:]}) for number in range(4)))
    expected = records(run(folder, tmp_path / "cpu"))
    monkeypatch.setattr(import_module("moe4.quantize.run.layer"), "solver_class", lambda _: DeviceSolver)
    found = records(run(folder, tmp_path / "batches"))
    for ours, theirs in zip(found, expected, strict=True):
        assert abs(ours.num_tokens - theirs.num_tokens) <= 2
        assert [name for name, _ in ours.matrices()] == [name for name, _ in theirs.matrices()]
        for (_, mine), (_, other) in zip(ours.matrices(), theirs.matrices(), strict=True):
            assert mine.method == other.method == "gptq"
            assert mine.rtn_error == pytest.approx(other.rtn_error, rel=0.02)
            assert mine.error == pytest.approx(other.error, rel=0.1)
