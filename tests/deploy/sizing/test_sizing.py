"""Sizing, held to known points of Kimi-K2, to files on disk and to vLLM's own rules."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy.deploy_cases import K2_TINY, KIMI_SIZES, write_kimi_config
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from shared_data import shared_path
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.config import FAMILIES
from moe4.deploy.manifests.images import has_plugin
from moe4.deploy.sizing.choose import default_layout, smallest_on, survey
from moe4.deploy.sizing.fit import (
    Layout,
    check_layout,
    fit,
    max_tensor_parallel,
    split_layers,
    startup_seconds,
)
from moe4.deploy.sizing.machines import DEVICES, cpu_server, find_device, unnamed_gpu
from moe4.deploy.sizing.release_size import ReleaseSize, read_release
from moe4.errors import CheckpointError, DeployError
from moe4.units import GIB


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> ReleaseSize:
    return read_release(str(write_kimi_config(tmp_path_factory.mktemp("kimi") / "Kimi-K2-Instruct")))


def test_kimi_k2_is_546_gb(kimi: ReleaseSize) -> None:
    assert round(kimi.num_bytes / 1e9, 2) == 546.64
    assert round(kimi.num_elements / 1e9, 2) == 146.49
    assert kimi.bytes_by_dtype.keys() == {"BF16", "I64", "F32", "I32"}
    assert kimi.kv_bytes_per_token == 70_272
    assert round(kimi.expert_bytes_read / 1e9, 1) == 10.9
    assert round(kimi.dense_bytes_read / 1e9, 1) == 21.1
    assert kimi.name == "Kimi-K2-Instruct"


def test_what_every_gpu_holds_whole_is_counted_apart(kimi: ReleaseSize) -> None:
    """vLLM fuses q_a_proj with kv_a_proj_with_mqa and keeps both, the router and the norms on every rank."""
    down_projections = (1536 + 512 + 64) * 7168
    norms = 2 * 7168 + 1536 + 512
    router = 384 * 7168
    assert kimi.layers[0].whole == 2 * (down_projections + norms)
    assert kimi.layers[60].whole == 2 * (down_projections + norms + router) + 4 * 384
    single, eight = fit(kimi, DEVICES["h200"], Layout()), fit(kimi, DEVICES["h200"], Layout(tensor=8))
    assert single.whole_bytes == eight.whole_bytes == sum(layer.whole for layer in kimi.layers) + 2 * 7168
    assert eight.weight_bytes - eight.whole_bytes == pytest.approx((kimi.num_bytes - eight.whole_bytes) / 8)


def test_the_published_config_gives_the_same(kimi: ReleaseSize) -> None:
    published = read_release(str(shared_path("configs", "kimi-k2-instruct")))
    assert published.num_bytes == kimi.num_bytes
    assert published.layers == kimi.layers


def test_tensor_parallel_8_is_the_most_at_group_128_and_16_with_the_plugin(
    kimi: ReleaseSize, tmp_path: Path
) -> None:
    assert kimi.group_size == 128
    assert max_tensor_parallel(kimi) == 8
    assert max_tensor_parallel(kimi, plugin=True) == 16
    two_nodes = DEVICES["h200"]
    refused = fit(kimi, two_nodes, Layout(tensor=16))
    assert refused.verdict == "no"
    assert refused.reason == (
        "the experts' inner width, 128 on each of 16 ranks, is one group of 128 codes: "
        "vLLM on GPUs gives wrong answers without moe4's plugin; "
        "use tensor parallel 8 x pipeline parallel 2, expert parallelism, "
        "a release in groups of 64 or 32 or an image with moe4's plugin"
    )
    assert fit(kimi, two_nodes, Layout(tensor=16), plugin=True).works
    assert fit(kimi, two_nodes, Layout(tensor=16, expert_parallel=True)).works
    assert fit(kimi, two_nodes, Layout(tensor=8, pipeline=2)).works
    assert fit(kimi, DEVICES["mi300x"], Layout(tensor=16)).works  # no Marlin there
    refusal = check_layout(kimi, Layout(tensor=32))
    assert refusal is not None
    assert "16 groups of 128 codes" in refusal
    assert check_layout(kimi, Layout(tensor=32, expert_parallel=True)) is None
    folder = str(write_kimi_config(tmp_path))
    assert [max_tensor_parallel(read_release(folder, size)) for size in (64, 32)] == [16, 32]
    assert "64 attention heads" in str(check_layout(kimi, Layout(tensor=3)))


def test_eight_80_gb_gpus_are_marginal_and_eight_h200_comfortable(kimi: ReleaseSize) -> None:
    for name in ("a100", "h100"):
        found = fit(kimi, DEVICES[name], Layout(tensor=8))
        assert found.verdict == "marginal"
        assert 68e9 < found.weight_bytes < 71e9
        assert fit(kimi, DEVICES[name], Layout(tensor=8), max_model_len=32_768).works
    assert fit(kimi, DEVICES["h200"], Layout(tensor=8)).verdict == "comfortable"
    assert fit(kimi, DEVICES["h100"], Layout(tensor=4)).verdict == "no"
    table = survey(kimi, max_model_len=None, concurrency=1)
    assert table.recommended is not None
    assert (table.recommended.device.name, table.recommended.layout.num_gpus) == ("H200", 8)


def test_files_and_config_give_the_same_sizes(tmp_path: Path) -> None:
    from model_fixtures import write_random_model, write_rounded_release

    source, out = tmp_path / "source", tmp_path / "release"
    write_random_model(source, num_hidden_layers=2, n_routed_experts=4)
    write_rounded_release(source, out, 32)
    from_files = read_release(str(out))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.json").write_bytes((out / "config.json").read_bytes())
    from_config = read_release(str(tmp_path / "alone"))
    assert from_files.origin == "headers"
    assert from_config.origin == "config"
    assert from_files.layers == from_config.layers
    assert from_files.bytes_by_dtype == from_config.bytes_by_dtype
    assert from_files.row_groups == from_config.row_groups


@pytest.mark.parametrize(
    ("layers", "embedding", "head", "says"),
    [
        ("model.layers", "model.embed_tokens", "lm_head", {"num_hidden_layers": 2}),
        ("backbone.layers", "backbone.embeddings", "lm_head", {"layers_block_type": ["moe", "moe"]}),
        ("layers", "embed", "head", {"num_layers": 2}),
    ],
)
def test_layers_are_found_whatever_a_family_calls_them(
    layers: str, embedding: str, head: str, says: dict[str, Any], tmp_path: Path
) -> None:
    config = {"model_type": "other", "vocab_size": 96, "hidden_size": 64, "num_experts": 2, **says}
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = {f"{embedding}.weight": torch.zeros(96, 64), f"{head}.weight": torch.zeros(96, 64)}
    for layer in range(2):
        state[f"{layers}.{layer}.mixer.o_proj.weight"] = torch.zeros(64, 32)
        for expert in range(2):
            state[f"{layers}.{layer}.mixer.experts.{expert}.up_proj.weight"] = torch.zeros(32, 64)
    state[f"vision.{layers}.1.mixer.o_proj.weight"] = torch.zeros(8, 8)
    save_file(state, tmp_path / "model.safetensors")
    release = read_release(str(tmp_path))
    assert [layer.experts for layer in release.layers] == [4 * 2 * 32 * 64] * 2
    assert [layer.split for layer in release.layers] == [4 * 64 * 32] * 2
    assert (release.embedding_bytes, release.head_bytes, release.other_bytes) == (4 * 96 * 64,) * 2 + (256,)


def test_a_source_is_sized_as_it_is() -> None:
    source = read_release(str(K2_TINY))
    stored = sum(file.stat().st_size for file in K2_TINY.glob("*.safetensors"))
    assert 0 < stored - source.num_bytes < 300_000  # the headers
    assert source.group_size is None
    assert source.uses_kimi_calls


@settings(max_examples=60, deadline=None)
@given(
    tensor=st.sampled_from([1, 2, 4, 8, 16]),
    pipeline=st.integers(1, 16),
    device=st.sampled_from(sorted(DEVICES)),
    length=st.integers(1, 131_072),
)
def test_the_parts_add_up_and_more_gpus_never_hold_less(
    kimi: ReleaseSize, tensor: int, pipeline: int, device: str, length: int
) -> None:
    layout = Layout(tensor=tensor, pipeline=pipeline)
    found = fit(kimi, DEVICES[device], layout, max_model_len=length)
    assert found.weight_bytes * layout.num_gpus >= kimi.num_bytes
    assert found.whole_bytes < found.weight_bytes
    if tensor < 16:
        wider = fit(kimi, DEVICES[device], Layout(tensor=2 * tensor, pipeline=pipeline), max_model_len=length)
        assert wider.cache_tokens >= found.cache_tokens
    if found.works:
        cached = found.max_model_len * kimi.kv_bytes_per_token // pipeline
        assert found.weight_bytes + cached < DEVICES[device].memory_bytes


def test_layers_are_dealt_as_vllm_deals_them() -> None:
    utils = pytest.importorskip("vllm.distributed.utils")
    for layers in (5, 61, 62, 64):
        for stages in range(1, 6):
            ends = [utils.get_pp_indices(layers, stage, stages) for stage in range(stages)]
            assert split_layers(layers, stages) == [end - start for start, end in ends]


def test_data_parallel_copies_the_rest_and_splits_the_cache(kimi: ReleaseSize) -> None:
    copies = Layout(tensor=1, data=16, expert_parallel=True)
    found = fit(kimi, DEVICES["h100"], copies)
    dense = kimi.num_bytes - sum(layer.experts for layer in kimi.layers)
    assert found.weight_bytes == pytest.approx(dense + (kimi.num_bytes - dense) / 16, rel=1e-6)
    assert found.cache_tokens % 16 == 0
    assert check_layout(kimi, Layout(data=2)) is not None


def test_one_group_is_wrong_on_one_gpu_and_right_on_a_cpu(tmp_path: Path) -> None:
    from model_fixtures import write_random_model, write_rounded_release

    source = write_random_model(tmp_path / "source", num_hidden_layers=2, n_routed_experts=4)
    release = read_release(str(write_rounded_release(source, tmp_path / "release", 128)))
    assert release.expert_width == 128
    assert max_tensor_parallel(release) == 0
    assert max_tensor_parallel(release, plugin=True) == 1
    with pytest.raises(DeployError, match=r"is one group of 128 codes.* use a release in groups of 64 or 32"):
        smallest_on(release, DEVICES["l40s"], 1024, 1)
    assert smallest_on(release, DEVICES["l40s"], 1024, 1, plugin=True).works
    assert fit(release, cpu_server(64), Layout(), max_model_len=1024).works
    assert survey(release, max_model_len=1024, concurrency=1).recommended is None
    assert survey(release, max_model_len=1024, concurrency=1, plugin=True).recommended is not None


def test_a_config_alone_is_sized_in_the_groups_quantize_would_choose(tmp_path: Path) -> None:
    sizes = {**KIMI_SIZES, "moe_intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    assert read_release(str(tmp_path)).group_size == 64
    assert read_release(str(tmp_path), 128).group_size == 128


def test_an_image_says_by_its_name_whether_it_has_the_plugin() -> None:
    for image in ("localhost/moe4-cpu:0.1.0", "registry.example.com:5000/ai/moe4-gpu", "moe4@sha256:0"):
        assert has_plugin(image)
    for image in ("docker.io/vllm/vllm-openai:v0.32.0", "moe4.example.com/vllm:1", "vllm/vllm-openai:moe4"):
        assert not has_plugin(image)


def test_a_layout_is_found_or_refused_in_one_line(kimi: ReleaseSize) -> None:
    assert default_layout(kimi, DEVICES["h100"], 16) == Layout(tensor=8, pipeline=2)
    assert default_layout(kimi, DEVICES["h100"], 8) == Layout(tensor=8)
    assert smallest_on(kimi, DEVICES["l40s"], None, 1).layout == Layout(tensor=8, pipeline=2)
    with pytest.raises(DeployError, match="does not fit on 64 x"):
        smallest_on(kimi, unnamed_gpu(8), None, 1)
    with pytest.raises(DeployError, match='gpu="h1000" is not in the table'):
        find_device("h1000")
    with pytest.raises(DeployError, match="131072"):
        fit(kimi, DEVICES["h200"], Layout(tensor=8), max_model_len=200_000)


def test_a_start_is_given_an_hour_and_more(kimi: ReleaseSize) -> None:
    assert startup_seconds(kimi, 0.3e9) > 3600
    assert fit(kimi, DEVICES["h200"], Layout(tensor=8)).free_bytes > 50 * GIB


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_command_prints_json_and_exit_codes(tmp_path: Path) -> None:
    folder = str(write_kimi_config(tmp_path / "kimi"))
    result = run("fit", folder, "--gpu", "h200", "--gpus", "8", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["fit"]["verdict"] == "comfortable"
    assert facts["release"]["bytes"] == 546_643_050_496
    assert run("fit", folder, "--gpu", "h100", "--gpus", "8").exit_code == 1
    assert facts["release"]["max_tensor_parallel"] == 8
    assert facts["release"]["max_tensor_parallel_with_plugin"] == 16
    wide = ("fit", folder, "--gpu", "h200", "--tensor-parallel", "16")
    assert run(*wide).exit_code == 1
    assert run(*wide, "--plugin").exit_code == 0
    table = run("fit", folder)
    assert table.exit_code == 0
    assert "tensor parallel 8 at most on GPUs, 16 with moe4's plugin" in table.stdout
    assert "recommended: 8 x H200 (TP8)" in table.stdout
    assert len(json.loads(run("fit", folder, "--json").stdout)["fits"]) >= 10


def test_what_is_no_release_is_one_line(tmp_path: Path) -> None:
    for where in (str(tmp_path), str(tmp_path / "none"), str(tmp_path / "none.json")):
        error = run("fit", where).exception
        assert isinstance(error, CheckpointError)
        assert "\n" not in str(error)
    folder = str(write_kimi_config(tmp_path / "kimi"))
    for options in (["--gpus", "8"], ["--gpu", "h200", "--gpu-memory", "80"], ["--disk", "0"]):
        assert isinstance(run("fit", folder, *options).exception, DeployError)


def test_a_repository_is_read_by_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client stays as it is; what it would fetch comes from k2-tiny's files."""
    import huggingface_hub
    from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo

    files = {}
    for path in sorted(K2_TINY.glob("*.safetensors")):
        size = int.from_bytes(path.read_bytes()[:8], "little")
        header = json.loads(path.read_bytes()[8 : 8 + size])
        header.pop("__metadata__", None)
        tensors = {
            name: TensorInfo(
                dtype=entry["dtype"], shape=entry["shape"], data_offsets=tuple(entry["data_offsets"])
            )
            for name, entry in header.items()
        }
        files[path.name] = SafetensorsFileMetadata(metadata={}, tensors=tensors)
    repo = SafetensorsRepoMetadata(metadata={}, sharded=True, weight_map={}, files_metadata=files)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda *_, **__: repo)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(K2_TINY / "config.json"))
    found = read_release("someone/k2-tiny")
    assert found.layers == read_release(str(K2_TINY)).layers
    assert found.name == "k2-tiny"


@pytest.mark.parametrize(
    "options",
    [
        ["--gpus", "0"],
        ["--gpu-memory", "0"],
        ["--gpu", "h200", "--gpus", "0"],
        ["--gpu", "h200", "--data-parallel", "0"],
        ["--gpu", "h200", "--data-parallel", "-1"],
        ["--gpu", "h200", "--gpu-memory", "0"],
        ["--group-size", "0"],
        ["--concurrency", "0"],
        ["--max-model-len", "0"],
    ],
)
@pytest.mark.parametrize("command", ["fit", "deploy"])
def test_nought_is_not_taken_for_not_given(command: str, options: list[str], tmp_path: Path) -> None:
    config = str(write_kimi_config(tmp_path / "Kimi-K2-Instruct"))
    words = [command, *(["podman"] if command == "deploy" else []), config, "--model", "file:///srv/k2"]
    words = [*(words if command == "deploy" else words[:2]), *options]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, DeployError), result.output
    assert "--trust-remote-code" not in str(result.exception)


@pytest.mark.parametrize("option", ["--tensor-parallel", "--pipeline-parallel", "--data-parallel"])
@pytest.mark.parametrize("size", ["0", "-1"])
def test_a_parallel_size_is_at_least_one(option: str, size: str, tmp_path: Path) -> None:
    config = str(write_kimi_config(tmp_path / "Kimi-K2-Instruct"))
    result = CliRunner().invoke(app, ["fit", config, "--gpu", "h200", option, size])
    assert isinstance(result.exception, DeployError)


@pytest.mark.parametrize("option", ["--tensor-parallel", "--pipeline-parallel", "--data-parallel"])
def test_a_parallel_size_may_be_absurd(option: str, tmp_path: Path) -> None:
    config = str(write_kimi_config(tmp_path / "Kimi-K2-Instruct"))
    result = CliRunner().invoke(app, ["fit", config, "--gpu", "h200", option, "9" * 20])
    assert isinstance(result.exception, DeployError | SystemExit), result.exception


def test_all_families_that_are_streamed_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config = {"model_type": "other_moe", "num_hidden_layers": 2, "n_routed_experts": 8}
    path.write_text(
        json.dumps(
            {**json.loads(Path(write_kimi_config(tmp_path / "K") / "config.json").read_text()), **config}
        )
    )
    with pytest.raises(CheckpointError, match="kimi_k25") as caught:
        read_release(str(path))
    for family in FAMILIES:
        assert family in str(caught.value)


@pytest.mark.parametrize("shape", [(), (1,), (64, 1), (64,)])
def test_scales_of_other_formats_split_as_they_like(shape: tuple[int, ...], tmp_path: Path) -> None:
    """FP8 has one scale a tensor or a row; W4A16 alone has groups that ranks share out."""
    config = json.loads((K2_TINY / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = "model.layers.1.mlp.experts.0.down_proj.weight"
    tensors = {name: torch.zeros(64, 64).to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(shape)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert read_release(str(tmp_path)).row_groups == {}
