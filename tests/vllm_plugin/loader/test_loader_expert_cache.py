"""The expert cache: what is read directly is what is mapped, whatever has made room for it."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from moe4.checkpoint.header import read_shard
from moe4.checkpoint.mapping import MappedShard
from moe4.errors import CheckpointError, ServeError
from moe4.kernels.table import table_experts
from moe4.machine.disk import READ_BYTES, allocate_for_reads, measure_disk_rate
from moe4.vllm_plugin.loader.cache import ExpertCache, LayerOfCache
from moe4.vllm_plugin.loader.layer import ExpertLayout, MappedLayer, map_layer

HIDDEN, INTER, EXPERTS, GROUP, LAYERS = 256, 256, 6, 128, 2


def layouts(**changes: Any) -> list[ExpertLayout]:
    whole = ExpertLayout(
        prefix="",
        projections=("w1", "w3", "w2"),
        experts=tuple(range(EXPERTS)),
        hidden=HIDDEN,
        inter=INTER,
        first=0,
        share=INTER,
        group_size=GROUP,
    )
    return [replace(whole, prefix=f"layers.{layer}.experts", **changes) for layer in range(LAYERS)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two shards of random experts, in the order and on the boundaries that safetensors chooses."""
    folder = tmp_path_factory.mktemp("release")
    generator = torch.Generator().manual_seed(0)
    paths = []
    for layout in layouts():
        state = {}
        for expert in range(EXPERTS):
            for name in layout.projections:
                stem = f"{layout.prefix}.{expert}.{name}"
                words = torch.randint(-(2**31), 2**31, (HIDDEN, INTER // 8), generator=generator)
                scales = torch.randn(HIDDEN, INTER // GROUP, generator=generator) * 0.02
                state[f"{stem}.weight_packed"] = words.to(torch.int32)
                state[f"{stem}.weight_scale"] = scales.to(torch.bfloat16)
        paths.append(folder / f"{layout.prefix}.safetensors")
        save_file(state, paths[-1])
    return paths


def map_all(shards: list[Path], found: list[ExpertLayout]) -> list[MappedLayer]:
    heads = [read_shard(path) for path in shards]
    maps = {head.path: MappedShard(head) for head in heads}
    stored = {name: tensor for head in heads for name, tensor in head.tensors.items()}
    return [map_layer(layout, stored, maps) for layout in found]


def run(table: torch.Tensor, ids: torch.Tensor, layout: ExpertLayout) -> torch.Tensor:
    x = torch.randn(ids.shape[0], HIDDEN, generator=torch.Generator().manual_seed(1))
    weights = torch.ones(ids.shape)
    return table_experts(
        x, table, weights, ids, inter=layout.share, group_size=GROUP, down_stride=layout.inter
    )


def need_direct_io(folder: Path) -> None:
    if measure_disk_rate([folder], huge_pages=True, seconds=0.01) is None and not can_read_directly(folder):
        pytest.skip("this file system has no direct I/O")


def can_read_directly(path: Path) -> bool:
    from moe4.machine.disk import DirectFile

    try:
        DirectFile(path).close()
    except CheckpointError:
        return False
    return True


@pytest.mark.parametrize("changes", [{}, {"share": 128, "first": 128}], ids=["whole", "second rank of two"])
@pytest.mark.parametrize("slots", [2, 3, 5, 100])
def test_the_results_of_mapped_experts(slots: int, changes: dict[str, Any], shards: list[Path]) -> None:
    """Random routing through few slots: every expert is evicted and read again many times."""
    need_direct_io(shards[0])
    found = layouts(**changes)
    mapped = map_all(shards, found)
    pairs = list(zip(found, mapped, strict=True))
    slot_bytes = ExpertCache(pairs, 1 << 30, 2).slot_bytes
    cache = ExpertCache(pairs, slots * slot_bytes, 2)
    assert cache.num_slots == min(slots, LAYERS * EXPERTS)
    views = [LayerOfCache(cache, layer) for layer in range(LAYERS)]
    rng = random.Random(0)
    for _ in range(40):
        layer = rng.randrange(LAYERS)
        ids = torch.tensor([[rng.choice([-1, *range(EXPERTS)]) for _ in range(2)] for _ in range(3)])
        parts = views[layer].split(ids)
        if slots >= EXPERTS:
            assert len(parts) == 1
        got = sum(run(views[layer].fetch(part), part, found[layer]) for part in parts)
        expected = run(mapped[layer].table, ids, found[layer])
        if len(parts) == 1:
            assert torch.equal(torch.as_tensor(got), expected)
        else:  # the same terms, added in parts
            torch.testing.assert_close(torch.as_tensor(got), expected, rtol=1e-5, atol=1e-5)
    if slots == 100:
        assert cache.num_misses <= LAYERS * EXPERTS
    else:
        assert cache.num_misses > LAYERS * EXPERTS


def test_the_least_frequently_used_make_room(shards: list[Path]) -> None:
    need_direct_io(shards[0])
    found = layouts()
    pairs = list(zip(found, map_all(shards, found), strict=True))
    cache = ExpertCache(pairs, 4 * ExpertCache(pairs, 1 << 30, 2).slot_bytes, 2)
    for _ in range(3):
        cache.fetch(0, torch.tensor([[0, 1]]))
    cache.fetch(0, torch.tensor([[2, 3]]))
    misses = cache.num_misses
    cache.fetch(1, torch.tensor([[5, -1]]))  # 2 goes: used once, as 3, and 2 comes first
    cache.fetch(0, torch.tensor([[0, 1]]))
    cache.fetch(0, torch.tensor([[3, -1]]))
    assert cache.num_misses == misses + 1
    cache.fetch(0, torch.tensor([[2, -1]]))
    assert cache.num_misses == misses + 2


def test_what_was_in_fashion_once_makes_room(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses count half after 4 fetches a layer on average: 9 of long ago are less than 8 of late."""
    need_direct_io(shards[0])
    monkeypatch.setattr("moe4.vllm_plugin.loader.cache.HALF_LIFE", 4)
    found = layouts()
    pairs = list(zip(found, map_all(shards, found), strict=True))
    cache = ExpertCache(pairs, 2 * ExpertCache(pairs, 1 << 30, 2).slot_bytes, 2)

    def fetch(layer: int, expert: int, times: int) -> int:
        misses = cache.num_misses
        for _ in range(times):
            cache.fetch(layer, torch.tensor([[expert, -1]]))
        return cache.num_misses - misses

    assert fetch(0, 0, 9) == 1
    assert fetch(0, 1, 8) == 1  # halved at the 8th and 16th fetch: 0 counts 2.75 now, 1 counts 5
    assert fetch(1, 2, 1) == 1  # 0 makes room for it
    assert fetch(0, 1, 1) == 0
    assert fetch(0, 0, 1) == 1


def test_what_the_cache_refuses(shards: list[Path], tmp_path: Path) -> None:
    found = layouts()
    mapped = map_all(shards, found)
    pairs = list(zip(found, mapped, strict=True))
    with pytest.raises(ServeError, match=r"holds 1 experts .* needs 2 at once: give it at least"):
        ExpertCache(pairs, ExpertCache(pairs, 1 << 30, 2).slot_bytes, 2)
    odd = replace(mapped[0].stored[3][1], offset=mapped[0].stored[3][1].offset + 2)
    mapped[0].stored[3][1] = odd
    with pytest.raises(CheckpointError, match=r"experts.3.w3.weight_packed .* cannot be used in place"):
        ExpertCache(pairs, 1 << 30, 2)


def test_files_too_small_to_tell_the_rate(shards: list[Path]) -> None:
    assert measure_disk_rate(shards, huge_pages=True) is None  # too small to tell


@pytest.mark.parametrize("huge_pages", [False, True])
def test_the_disk_is_measured_into_the_pages_that_will_be_read_into(huge_pages: bool, tmp_path: Path) -> None:
    """Requests into huge pages are larger, and two to three times as fast on some disks."""
    large = tmp_path / "large"
    large.write_bytes(bytes(READ_BYTES + 1))
    if can_read_directly(large):
        assert (measure_disk_rate([large], huge_pages=huge_pages, seconds=0.01) or 0) > 0
    memory = allocate_for_reads(READ_BYTES, huge_pages=huge_pages)
    address = np.frombuffer(memory, dtype=np.uint8).ctypes.data
    flags: list[str] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *values = line.split()
        if "-" in key:
            first, end = (int(part, 16) for part in key.split("-"))
            inside = first <= address < end
        elif key == "VmFlags:" and inside:
            flags = values
    if Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        assert ("hg" in flags, "nh" in flags) == (huge_pages, not huge_pages)
