"""`--load-format moe4` maps experts instead of copying them, and changes no answer."""

import os
import random
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import REFERENCE_MODEL, write_rounded_release
from safetensors.torch import save_file
from transformers import AutoTokenizer
from vllm_forks import VllmForks

from k2tiny import corpus
from moe4.checkpoint.header import read_shard
from moe4.checkpoint.mapping import MappedShard, read_ahead, resident_bytes
from moe4.errors import CheckpointError, MissingFileError, ServeError, TensorError
from moe4.kernels import fused_experts
from moe4.kernels.table import check_addresses, table_experts
from moe4.vllm_plugin.loader.layer import ExpertLayout, MappedLayer, join_ranges, map_layer
from moe4.vllm_plugin.loader.options import LoaderOptions, take_options

PREFIX = "model.layers.1.mlp.experts"
HIDDEN, INTER, EXPERTS, GROUP = 128, 256, 4, 64
LAYOUT = ExpertLayout(
    prefix=PREFIX,
    projections=("gate_proj", "up_proj", "down_proj"),
    experts=tuple(range(EXPERTS)),
    hidden=HIDDEN,
    inter=INTER,
    first=0,
    share=INTER,
    group_size=GROUP,
)


def experts_state(scale_dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Return random packed experts under a checkpoint's names."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for expert in range(EXPERTS):
        for name, rows, columns in (
            ("gate_proj", INTER, HIDDEN),
            ("up_proj", INTER, HIDDEN),
            ("down_proj", HIDDEN, INTER),
        ):
            words = torch.randint(-(2**31), 2**31, (rows, columns // 8), generator=generator)
            scales = torch.randn(rows, columns // GROUP, generator=generator) * 0.02
            stem = f"{PREFIX}.{expert}.{name}"
            state[f"{stem}.weight_packed"] = words.to(torch.int32)
            state[f"{stem}.weight_scale"] = scales.to(torch.bfloat16).to(scale_dtype)
    return state


def shift_data(path: Path, num_bytes: int) -> None:
    """Lengthen a safetensors file's header by spaces, so that its data begins elsewhere."""
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    path.write_bytes(
        (header + num_bytes).to_bytes(8, "little")
        + data[8 : 8 + header]
        + b" " * num_bytes
        + data[8 + header :]
    )


def map_file(path: Path, layout: ExpertLayout = LAYOUT) -> MappedLayer:
    shard = read_shard(path)
    return map_layer(layout, shard.tensors, {path: MappedShard(shard)})


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, HIDDEN, generator=generator)
    weights = torch.rand(7, 2, generator=generator)
    ids = torch.randint(0, EXPERTS, (7, 2), generator=generator)
    return x, weights, ids


def mapped_result(mapped: MappedLayer, layout: ExpertLayout = LAYOUT) -> torch.Tensor:
    """Run this rank's experts where they lie; ids are the checkpoint's."""
    check_addresses(mapped.table)
    x, weights, ids = inputs()
    local = torch.tensor([layout.experts.index(e) if e in layout.experts else -1 for e in range(EXPERTS)])
    return table_experts(
        x, mapped.table, weights, local[ids], inter=layout.share, group_size=GROUP, down_stride=layout.inter
    )


def stacked_result(state: dict[str, torch.Tensor], layout: ExpertLayout = LAYOUT) -> torch.Tensor:
    """Run the same on copies, cut as the rank's share says."""
    first, last = layout.first, layout.first + layout.share

    def stack(leaf: str, unit: int) -> tuple[torch.Tensor, torch.Tensor]:
        gate_up, down = [], []
        for expert in layout.experts:
            parts = [state[f"{PREFIX}.{expert}.{name}.{leaf}"] for name in layout.projections]
            gate_up.append(torch.cat([parts[0][first:last], parts[1][first:last]]))
            down.append(parts[2][:, first // unit : last // unit].contiguous())
        return torch.stack(gate_up), torch.stack(down)

    x, weights, ids = inputs()
    local = torch.tensor([layout.experts.index(e) if e in layout.experts else -1 for e in range(EXPERTS)])
    packed, scale = stack("weight_packed", 8), stack("weight_scale", GROUP)
    return fused_experts(
        x,
        packed[0],
        scale[0].bfloat16(),
        packed[1],
        scale[1].bfloat16(),
        weights,
        local[ids],
        group_size=GROUP,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"share": 128},
        {"share": 64, "first": 192},
        {"experts": (1, 3)},
        {"experts": (2,), "share": 128, "first": 128},
    ],
    ids=["whole", "first of two ranks", "last of four", "two experts", "both"],
)
def test_each_rank_finds_its_part_in_the_file(changes: dict[str, Any], tmp_path: Path) -> None:
    state = experts_state()
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    layout = replace(LAYOUT, **changes)
    mapped = map_file(path, layout)
    assert torch.equal(mapped_result(mapped, layout), stacked_result(state, layout))
    assert not mapped.copied
    assert not mapped.kept


@pytest.mark.parametrize("shift", [0, 1, 2, 4])
def test_crooked_tensors_are_copied_and_named(shift: int, tmp_path: Path) -> None:
    """A header's length decides whether data begin on the boundaries of their types."""
    state = experts_state()
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    shift_data(path, shift)
    mapped = map_file(path)
    assert torch.equal(mapped_result(mapped), stacked_result(state))
    packed = sum(tensor.nbytes for name, tensor in state.items() if name.endswith("packed"))
    scales = sum(tensor.nbytes for name, tensor in state.items() if name.endswith("scale"))
    expected = {0: 0, 4: 0, 2: packed, 1: packed + scales}[shift]
    assert sum(mapped.copied.values()) == expected
    assert list(mapped.copied) == (["tensors do not begin on a boundary of their type"] if expected else [])


def test_scales_of_other_types_are_rounded_and_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(experts_state(torch.float32), path)
    mapped = map_file(path)
    assert list(mapped.copied) == ["scales in F32 are rounded to BF16"]
    assert torch.equal(mapped_result(mapped), stacked_result(experts_state()))


def test_what_is_not_there_or_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = experts_state()
    save_file(state, path)
    with pytest.raises(
        TensorError, match=r"gate_proj.weight_scale .* expected .* \[256, 4\] for group size 32"
    ):
        map_file(path, replace(LAYOUT, group_size=32))
    with pytest.raises(
        TensorError, match=r"gate_proj.weight_packed .* is I32 \[256, 16\], expected I32 \[512, 16\]"
    ):
        map_file(path, replace(LAYOUT, inter=512, share=512))
    with pytest.raises(
        MissingFileError, match=r"has no model.layers.1.mlp.experts.4.gate_proj.weight_packed"
    ):
        map_file(path, replace(LAYOUT, experts=(4,)))
    state[f"{PREFIX}.2.up_proj.weight_packed"] = state[f"{PREFIX}.2.up_proj.weight_packed"].to(torch.int64)
    save_file(state, path)
    with pytest.raises(TensorError, match=r"experts.2.up_proj.weight_packed .* is I64"):
        map_file(path)


def test_a_file_that_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(experts_state(), path)
    shard = replace(read_shard(path), path=Path("/sys/kernel/notes"), num_bytes=1)
    with pytest.raises(CheckpointError, match=r"/sys/kernel/notes cannot be mapped .*--load-format auto"):
        MappedShard(shard)


def test_pages_are_the_files_own_until_they_are_asked_for(tmp_path: Path) -> None:
    """Mapping reads nothing; `read_ahead` brings in what it is asked for."""
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(32 << 18)}, path)
    shard = MappedShard(read_shard(path))
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_bytes(shard.address, shard.num_bytes):
        pytest.skip("this file system does not give its pages back")
    read_ahead([(shard.address + (8 << 20) + 5, 4 << 20)], shard.readahead_bytes)
    while resident_bytes(shard.address + (8 << 20), 4 << 20) < 4 << 20:  # pytest's own limit ends it
        time.sleep(0.01)
    assert resident_bytes(shard.address + (24 << 20), 4 << 20) == 0


def test_ranges_that_touch_become_one() -> None:
    assert join_ranges([(100, 10), (0, 50), (50, 50), (200, 1)]) == [(0, 110), (200, 1)]


def test_options_are_ours_or_vllms() -> None:
    options, rest = take_options({"rest": "int8", "num_threads": 4})
    assert options == LoaderOptions(rest="int8")
    assert rest == {"num_threads": 4}
    for extra, reason in (
        ({"rest": "int2"}, "rest: expected one of bfloat16, int8, int4, found 'int2'"),
        ({"expert_cache_gb": -1}, "at least 0"),
        ({"expert_cache_gb": True}, "at least 0, found True"),
    ):
        with pytest.raises(ServeError, match=reason):
            take_options(extra)


def test_a_cache_is_for_experts_that_do_not_fit() -> None:
    assert LoaderOptions().cache_bytes(100, 100, 1) is None
    assert LoaderOptions().cache_bytes(101, 100, 1) == 80
    assert LoaderOptions().cache_bytes(101, 100, 4) == 20
    assert LoaderOptions(expert_cache_gb=0).cache_bytes(101, 100, 1) is None
    assert LoaderOptions(expert_cache_gb=3).cache_bytes(101, 100, 2) == 3_000_000_000


@pytest.mark.vllm
def test_answers_are_those_of_vllms_loader(tmp_path: Path, vllm_forks: VllmForks) -> None:
    """Mapped or cached experts give the same bits; a rounded rest moves log-probabilities by little."""
    release = write_rounded_release(REFERENCE_MODEL, tmp_path / "release", 64)
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE_MODEL)
    rng = random.Random(3)
    prompts = [tokenizer.encode(corpus.draw_document(rng).text)[:length] for length in (7, 80)]
    request = {"model": release, "prompts": prompts, "max_tokens": 8, "prompt_logprobs": True}
    ours: dict[str, Any] = {"load_format": "moe4"}
    runs = [
        {"load_format": "auto"},
        ours,
        # Room for some 30 of 96 experts: the layers drive each other's out.
        {**ours, "model_loader_extra_config": {"expert_cache_gb": 0.002}},
        {**ours, "model_loader_extra_config": {"rest": "int8"}},
        {**ours, "model_loader_extra_config": {"rest": "int4"}},
    ]
    results = [vllm_forks.engine({**request, "engine": engine}) for engine in runs]
    (default, log), (mapped, mapped_log), (cached, cached_log), *rounded = results
    assert mapped == default
    assert "mapped from the release" not in log
    assert "mapped from the release" in mapped_log
    assert re.search(r"moe4: mapped 96 experts of 4 layers, .* copied 0 B", mapped_log)
    assert cached == default
    assert re.search(r"there is memory for 2.0 MB of them, in a cache", cached_log)
    for (found, rounded_log), kind in zip(rounded, ("int8", "int4 in groups of 128"), strict=True):
        assert f"beside the routed experts rounded to {kind}" in rounded_log
        differences = [
            abs(left - right)
            for one, other in zip(default, found, strict=True)
            for left, right in zip(one["prompt_logprobs"], other["prompt_logprobs"], strict=True)
        ]
        assert 0 < sum(differences) / len(differences) < 0.1
