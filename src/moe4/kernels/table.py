"""`table_experts`: the forward of `fused_experts` over experts that lie anywhere in memory."""

import torch
from torch import Tensor

from moe4.errors import KernelError
from moe4.kernels import _experts
from moe4.kernels.op import (
    GROUP_SIZES,
    HIDDEN_DTYPES,
    ID_DTYPES,
    call_kernel,
    expect_tensor,
)

# Columns of a table: the addresses of an expert's packed words and of their scales.
COLUMNS = ("gate", "up", "down", "gate_scale", "up_scale", "down_scale")
ALIGNMENTS = (4, 4, 4, 2, 2, 2)


def table_experts(
    hidden_states: Tensor,
    table: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    inter: int,
    group_size: int,
    down_stride: int | None = None,
    num_threads: int | None = None,
    out: Tensor | None = None,
    path: str | None = None,
) -> Tensor:
    """Return what `fused_experts` returns, to the bit, for the experts whose addresses are in `table`.

    hidden_states, topk_weights, topk_ids, group_size, num_threads, out, path: as in `fused_experts`.
    table: int64 [experts, 6], contiguous: for each expert the addresses of gate, up and down, then of their
        scales (`COLUMNS`). Rows of an expert that no id names are not read and may hold anything.
        gate and up: int32 [inter, hidden / 8]; their scales: bfloat16 [inter, hidden / group_size].
        down: int32 [hidden, inter / 8], its rows `down_stride` columns apart; its scales: bfloat16
        [hidden, inter / group_size], their rows `down_stride / group_size` apart.
    inter: the experts' inner width.
    down_stride: columns from a row of down to the next, for a rank that takes some columns of a wider
        matrix; None means `inter`.

    Raises KernelError if an argument is not as above. Whether the memory is mapped, and holds what it should,
    is the caller's to know.
    """
    stride = inter if down_stride is None else down_stride
    _check_table(hidden_states, table, topk_weights, topk_ids, inter, stride, group_size)
    return call_kernel(
        _experts.run_scattered,
        hidden_states,
        topk_weights,
        topk_ids,
        group_size=group_size,
        num_threads=num_threads,
        out=out,
        path=path,
        inter=inter,
        experts=table.shape[0],
        table=table.data_ptr(),
        down_stride=stride // 8,
        down_scale_stride=stride // group_size,
    )


def _check_table(
    hidden_states: Tensor,
    table: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    inter: int,
    down_stride: int,
    group_size: int,
) -> None:
    """Raise KernelError unless dtypes, shapes, strides and widths are as `table_experts` says."""
    if group_size not in GROUP_SIZES:
        raise KernelError(f"group_size: expected 32, 64 or 128, found {group_size}")
    for name, tensor in (("hidden_states", hidden_states), ("table", table), ("topk_ids", topk_ids)):
        if not isinstance(tensor, Tensor) or tensor.dim() != 2:
            raise KernelError(f"{name}: expected a tensor of 2 dimensions")
    tokens, hidden = hidden_states.shape
    for name, width in (("hidden_states", hidden), ("inter", inter), ("down_stride", down_stride)):
        if width <= 0 or width % group_size:
            raise KernelError(
                f"{name}: expected a width that is a multiple of group_size {group_size}, found {width}"
            )
    if down_stride < inter:
        raise KernelError(f"down_stride: expected at least inter, {inter}, found {down_stride}")
    expect_tensor("hidden_states", hidden_states, (tokens, hidden), tuple(HIDDEN_DTYPES))
    expect_tensor("table", table, (table.shape[0], len(COLUMNS)), (torch.int64,), contiguous=True)
    expect_tensor("topk_weights", topk_weights, tuple(topk_ids.shape), (torch.float32,))
    expect_tensor("topk_ids", topk_ids, (tokens, topk_ids.shape[1]), ID_DTYPES)


def check_addresses(table: Tensor) -> None:
    """Raise KernelError unless every address is on its type's boundary, which `table_experts` relies on."""
    for column, (name, alignment) in enumerate(zip(COLUMNS, ALIGNMENTS, strict=True)):
        wrong = (table[:, column] % alignment).nonzero()
        if len(wrong):
            raise KernelError(
                f"table: expected {name} on a boundary of {alignment} bytes, expert {int(wrong[0])} is not"
            )
