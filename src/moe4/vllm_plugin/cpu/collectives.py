"""Two operations between vLLM's data parallel engines on CPUs, which vLLM 0.32 has on GPUs only.

Before a layer's experts the engines bring their tokens together, and after it each takes its own tokens'
sums. vLLM's communicator for CPUs lacks both operations: its workers stopped at the first request.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import broadcast


def attach() -> None:
    """Give vLLM's communicator for CPUs what it lacks; leave what it has."""
    from vllm.distributed.device_communicators.base_device_communicator import DeviceCommunicatorBase
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    for function in (all_gatherv, reduce_scatterv):
        name = function.__name__
        if getattr(CpuCommunicator, name) is getattr(DeviceCommunicatorBase, name):
            setattr(CpuCommunicator, name, function)


def all_gatherv(
    communicator: Any, input_: Tensor | list[Tensor], dim: int = 0, sizes: list[int] | None = None
) -> Tensor | list[Tensor]:
    """Return the ranks' tensors one after the other along the first dimension; rank r has `sizes[r]` rows."""
    _check_dimension(dim)
    if isinstance(input_, list):
        return [_gather(communicator, tensor, sizes) for tensor in input_]
    return _gather(communicator, input_, sizes)


def reduce_scatterv(
    communicator: Any, input_: Tensor, dim: int = -1, sizes: list[int] | None = None
) -> Tensor:
    """Return this rank's rows of the sum of the ranks' tensors; rank r gets `sizes[r]` of them."""
    _check_dimension(dim % input_.dim())
    rank = communicator.rank_in_group
    rows = sizes or [input_.shape[0] // communicator.world_size] * communicator.world_size
    total: Tensor = communicator.all_reduce(input_.clone(memory_format=torch.contiguous_format))
    first = sum(rows[:rank])
    return total[first : first + rows[rank]].clone()


def _gather(communicator: Any, tensor: Tensor, sizes: list[int] | None) -> Tensor:
    rows = sizes or [tensor.shape[0]] * communicator.world_size
    gathered = tensor.new_empty((sum(rows), *tensor.shape[1:]))
    first = 0
    for rank, num_rows in enumerate(rows):
        part = gathered[first : first + num_rows]
        first += num_rows
        if rank == communicator.rank_in_group:
            part.copy_(tensor)
        if num_rows:
            broadcast(part, src=communicator.ranks[rank], group=communicator.device_group)
    return gathered


def _check_dimension(dim: int) -> None:
    if dim != 0:
        raise NotImplementedError(f"moe4 gathers and scatters along dimension 0 on CPUs, not {dim}")
