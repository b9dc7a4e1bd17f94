"""What data parallel engines exchange on CPUs, between two processes; whole models: test_two_processes.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from moe4.vllm_plugin.cpu.collectives import all_gatherv, reduce_scatterv

SIZES = ([3, 5], [0, 4], [2, 2])


class Communicator(SimpleNamespace):
    """As much of vLLM's as the operations use."""

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(tensor, group=self.device_group)
        return tensor


def rows_of(rank: int, sizes: list[int], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(-9, 9, (sizes[rank], 6), generator=generator).to(dtype)


def exchange(rank: int, folder: str) -> None:
    """Be one of the two."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    group = torch.distributed.group.WORLD
    communicator = Communicator(rank_in_group=rank, world_size=2, ranks=[0, 1], device_group=group)
    found: list[Any] = []
    for sizes in SIZES:
        tensors = [rows_of(rank, sizes, dtype) for dtype in (torch.bfloat16, torch.int32)]
        found.append(all_gatherv(communicator, tensors, 0, sizes))
        whole = rows_of(rank, [sum(sizes)] * 2, torch.bfloat16)
        found.append(reduce_scatterv(communicator, whole, 0, sizes))
    found.append(all_gatherv(communicator, tensors[0]))
    found.append(reduce_scatterv(communicator, whole, -2))
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_tokens_are_brought_together_and_sums_are_shared_out(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(exchange, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for number, sizes in enumerate(SIZES):
            gathered, part = found[2 * number : 2 * number + 2]
            for tensor, dtype in zip(gathered, (torch.bfloat16, torch.int32), strict=True):
                assert torch.equal(tensor, torch.cat([rows_of(r, sizes, dtype) for r in range(2)]))
            total = sum(rows_of(r, [sum(sizes)] * 2, torch.bfloat16) for r in range(2))
            assert torch.equal(part, total.split(sizes)[rank])
        assert torch.equal(found[-2], gathered[0])
        assert torch.equal(found[-1], part)


def test_other_dimensions_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="along dimension 0"):
        all_gatherv(Communicator(), torch.zeros(2, 2), 1)


@pytest.mark.vllm
def test_vllm_gets_them_where_it_lacks_them() -> None:
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    from moe4.vllm_plugin import register

    register()
    assert CpuCommunicator.all_gatherv is all_gatherv
    assert CpuCommunicator.reduce_scatterv is reduce_scatterv
