"""What `moe4 fit` says of Kimi-K2, beside figures worked out by hand from its shapes and the GPUs' sheets."""

import json
from typing import Any

import pytest
from deploy.deploy_cases import write_kimi_config
from model_fixtures import REFERENCE_MODEL
from typer.testing import CliRunner

import moe4
from moe4.cli.app import app
from moe4.deploy.sizing import machines
from moe4.errors import DeployError, ServeError
from moe4.machine.gpus import Gpu

GIB = 1 << 30
EXPERTS, REST = 10_899_970_560, 21_095_653_376  # bytes that a decoded token reads
WHOLE = 2_179_342_336  # of the rest, that every GPU holds whole


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_kimi_config(tmp_path_factory.mktemp("kimi") / "K2"))


def fit(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["fit", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def facts(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fit(*arguments, "--json"))
    return found


def test_eight_h200_in_figures(kimi: str) -> None:
    found = facts(kimi, "--gpu", "h200", "--gpus", "8")["fit"]
    sizes = ("gpus", "nodes", "tensor_parallel", "pipeline_parallel", "data_parallel", "concurrency")
    assert [found[name] for name in sizes] == [8, 1, 8, 1, 1, 1]
    assert found["replicated_bytes_per_gpu"] == WHOLE
    read = (EXPERTS + REST - WHOLE) / 8 + WHOLE
    assert found["ceiling_tokens_per_second"] == pytest.approx(4.8e12 / read, abs=0.06)
    assert found["ceiling_batch_tokens_per_second"] == found["ceiling_tokens_per_second"]
    room = (
        0.92 * found["device_memory_bytes"] - found["weight_bytes_per_gpu"] - found["working_bytes_per_gpu"]
    )
    assert found["cache_tokens"] == pytest.approx(room / 70_272, abs=1)
    assert found["full_length_sequences"] == found["cache_tokens"] // 131_072 == 6
    assert 0 <= found["cache_tokens"] - found["longest_conversation"] < 64  # whole blocks


def test_this_machine_has_a_row(kimi: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CPU server by its memory; with GPUs, as many as there are. What is recommended is the table's."""
    monkeypatch.setattr(machines, "list_gpus", lambda: [])
    monkeypatch.setattr(machines, "total_memory_bytes", lambda: 2000 * GIB)
    found = facts(kimi)
    (row,) = [row for row in found["fits"] if row["this_machine"]]
    assert (row["device"], row["gpus"], row["verdict"]) == ("this machine, 2000 GiB", 0, "comfortable")
    assert "this machine, 2000 GiB" in fit(kimi)
    before = found["recommended"]
    gpu = Gpu(vendor="nvidia", name="NVIDIA H200", memory_bytes=143_771 << 20)
    monkeypatch.setattr(machines, "list_gpus", lambda: [gpu] * 8)
    found = facts(kimi)
    (row,) = [row for row in found["fits"] if row["this_machine"]]
    (table,) = [row for row in found["fits"] if row["device"] == "H200" and row["gpus"] == 8]
    same = {"device": "NVIDIA H200, this machine's", "this_machine": True}
    assert row == table | same
    assert found["recommended"] == before and not before["this_machine"]
    monkeypatch.setattr(machines, "list_gpus", lambda: [gpu])
    (row,) = [row for row in facts(kimi)["fits"] if row["this_machine"]]
    assert (row["gpus"], row["verdict"]) == (1, "no")


def test_a_conversation_more_reads_more_experts_and_the_rest_once(kimi: str) -> None:
    """Of 384 experts four tokens choose 8 each at random: 384 (1 - (1 - 8/384)^4) are read."""
    found = facts(kimi, "--gpu", "h200", "--gpus", "8", "--concurrency", "4")["fit"]
    experts = EXPERTS / 8 * 384 * (1 - (1 - 8 / 384) ** 4)
    read = (experts + REST - WHOLE) / 8 + WHOLE
    assert found["ceiling_batch_tokens_per_second"] == pytest.approx(4 * 4.8e12 / read, rel=1e-3)


def test_the_release_in_figures(kimi: str) -> None:
    found = facts(kimi, "--gpu", "h200", "--gpus", "8", "--disk", "2")["release"]
    assert found["bytes_read_per_token"] == {"experts": EXPERTS, "rest": REST}
    assert (found["kv_bytes_per_token"], found["kv_replicated"]) == (70_272, True)
    assert (found["max_tensor_parallel"], found["max_tensor_parallel_with_plugin"]) == (8, 16)
    assert found["load_seconds"] == round(found["bytes"] / 2e9)
    assert found["startup_seconds"] > found["load_seconds"]


def test_the_table_has_a_row_for_a_machine_and_one_for_the_fewest_that_work(kimi: str) -> None:
    found = facts(kimi)
    table = [row for row in found["fits"] if not row["this_machine"]]
    rows = [(row["device"], row["gpus"], row["nodes"], row["verdict"]) for row in table]
    assert rows == [
        ("L40S", 8, 1, "no"),
        ("L40S", 16, 2, "fits"),
        ("A100 80", 8, 1, "marginal"),
        ("A100 80", 16, 2, "comfortable"),
        ("H100", 8, 1, "marginal"),
        ("H100", 16, 2, "comfortable"),
        ("H200", 8, 1, "comfortable"),
        ("B200", 8, 1, "comfortable"),
        ("B200", 4, 1, "fits"),
        ("MI300X", 8, 1, "comfortable"),
        ("MI300X", 4, 1, "comfortable"),
        ("CPU, 384 GiB", 0, 1, "no"),
        ("CPU, 768 GiB", 0, 1, "comfortable"),
        ("CPU, 1024 GiB", 0, 1, "comfortable"),
        ("CPU, 1536 GiB", 0, 1, "comfortable"),
    ]
    picked = [(found[name]["device"], found[name]["gpus"]) for name in ("smallest", "recommended")]
    assert picked == [("B200", 4), ("H200", 8)]


def test_the_table_as_it_is_read(kimi: str) -> None:
    lines = fit(kimi).splitlines()
    assert lines[:5] == [
        "K2: 546.64 GB, groups of 128 (from its config: the W4A16 release it becomes)",
        "  routed experts 523.20 GB, the rest 23.44 GB",
        "  a decoded token reads 10.90 GB of experts and 21.10 GB of the rest",
        "  cache 70,272 bytes a token; each GPU holds all of it under tensor parallelism",
        "  tensor parallel 8 at most on GPUs, 16 with moe4's plugin; load 547 s at 1 GB/s of disk",
    ]
    cells = [line.split("  ") for line in lines]
    rows = {row[0].strip(): [cell.strip() for cell in row[1:] if cell.strip()] for row in cells}
    assert rows["machine"] == ["layout", "weights/GPU", "cache", "longest", "conv.", "tok/s <", "verdict"]
    assert rows["8 x H200"] == ["TP8", "65.4 GiB", "913,054", "913,024", "6", "813", "comfortable"]
    assert rows["16 x L40S, 2 machines"][0] == "TP8 x PP2"
    assert rows["8 x L40S"][-1] == "no: needs 69.4 GiB before any cache; only 41.4 may be used"
    assert rows["CPU, 768 GiB"][0] == "509.1 GiB"
    assert "smallest that works: 4 x B200 (TP4), 3 conversations of 131072 tokens at once" in lines
    assert "recommended: 8 x H200 (TP8), 6 conversations of 131072 tokens at once" in lines


def test_a_column_for_several_at_once_comes_with_several(kimi: str) -> None:
    text = fit(kimi, "--gpu", "h200", "--gpus", "8", "--concurrency", "4")
    assert "tok/s < at 4" in text
    assert text.splitlines()[-1].split()[-2:] == ["1954", "comfortable"]


def test_a_split_that_does_not_divide_names_those_that_do(kimi: str) -> None:
    """64 heads, and down_proj's 2048 columns in 16 groups of 128."""
    result = CliRunner().invoke(app, ["fit", kimi, "--gpu", "h200", "--tensor-parallel", "32"])
    assert "16 groups of 128 codes; use one of 1, 2, 4, 8, 16" in str(result.stdout) + str(result.exception)


@pytest.mark.parametrize(("gpu", "hint"), [("h100", "; --max-model-len 59008 would fit"), ("l40s", "")])
def test_a_deployment_that_is_refused_says_what_would_fit(kimi: str, gpu: str, hint: str) -> None:
    arguments = ["deploy", "podman", kimi, "--gpu", gpu, "--gpus", "8", "--model", "file:///srv/k2"]
    error = CliRunner().invoke(app, [*arguments, "--trust-remote-code"]).exception
    assert isinstance(error, DeployError)
    assert f"cannot be served on 8 x {gpu.upper()} (TP8)" in str(error)
    assert str(error).endswith(hint)
    assert ("would fit" in str(error)) == bool(hint)


def test_a_length_as_vllm_writes_it() -> None:
    written, counted = (
        moe4.fit(REFERENCE_MODEL, gpu="h100", max_model_len=length) for length in ("2k", 2000)
    )
    assert written.as_dict() == counted.as_dict()
    with pytest.raises(ServeError, match='max_model_len="2x" is not a number of tokens'):
        moe4.fit(REFERENCE_MODEL, gpu="h100", max_model_len="2x")
