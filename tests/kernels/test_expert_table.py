"""`table_experts`: experts scattered over memory give the bits of experts in one tensor."""

import dataclasses

import pytest
import torch
from expert_cases import Case, make_case
from torch import Tensor

from moe4.errors import KernelError
from moe4.kernels import available_paths, fused_experts
from moe4.kernels.table import check_addresses, table_experts


def scattered(tensors: list[Tensor], offset_bytes: int) -> tuple[Tensor, list[int]]:
    """Copy tensors into one buffer, each after a gap that leaves it on its type's boundary only."""
    sizes = [tensor.nbytes + 64 for tensor in tensors]
    buffer = torch.zeros(sum(sizes) + 64, dtype=torch.uint8)
    addresses, position = [], -buffer.data_ptr() % 64
    for tensor, size in zip(tensors, sizes, strict=True):
        start = position + max(offset_bytes, tensor.element_size())
        buffer[start : start + tensor.nbytes] = tensor.contiguous().reshape(-1).view(torch.uint8)
        addresses.append(buffer.data_ptr() + start)
        position += size
    return buffer, addresses


def table_of(case: Case, offset_bytes: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Return a table over copies of the case's experts in shuffled places, and the memory they lie in."""
    inter = case.w13_packed.shape[1] // 2
    rows, memory = [], []
    for expert in range(case.w13_packed.shape[0]):
        w13, s13 = case.w13_packed[expert], case.w13_scale[expert]
        matrices = [w13[:inter], w13[inter:], case.w2_packed[expert], s13[:inter], s13[inter:]]
        buffer, addresses = scattered([*matrices, case.w2_scale[expert]], offset_bytes)
        memory.append(buffer)
        rows.append(addresses)
    rows[1] = [0] * 6  # no id names expert 1, so nothing of it is read
    return torch.tensor(rows), memory


@pytest.mark.parametrize("path", available_paths())
@pytest.mark.parametrize(("group_size", "offset"), [(128, 0), (128, 4), (64, 20), (32, 8)])
def test_the_bits_of_fused_experts(path: str, group_size: int, offset: int) -> None:
    case = make_case(tokens=17, group_size=group_size)
    table, _memory = table_of(case, offset)
    check_addresses(table)
    result = table_experts(
        case.hidden_states,
        table,
        case.topk_weights,
        case.topk_ids,
        inter=128,
        group_size=group_size,
        path=path,
    )
    arguments = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    assert torch.equal(result, fused_experts(**arguments, path=path))


@pytest.mark.parametrize("path", available_paths())
def test_columns_of_a_wider_down_are_a_ranks_share(path: str) -> None:
    """Two ranks' views of one expert are to the bit the experts that copies of their parts make."""
    case = make_case(tokens=5, inter=256, group_size=64, dtype=torch.float32)
    table, _memory = table_of(case)
    for rank in range(2):
        rows = slice(rank * 128, (rank + 1) * 128)
        share = table + torch.tensor([128 * 128, 128 * 128, 128 // 2, 128 * 8, 128 * 8, 4]) * rank
        result = table_experts(
            case.hidden_states,
            share,
            case.topk_weights,
            case.topk_ids,
            inter=128,
            group_size=64,
            down_stride=256,
            path=path,
        )
        gate_up = [
            tensor.unflatten(1, (2, 256))[:, :, rows].flatten(1, 2)
            for tensor in (case.w13_packed, case.w13_scale)
        ]
        expected = fused_experts(
            case.hidden_states,
            gate_up[0],
            gate_up[1],
            case.w2_packed[:, :, rank * 16 : (rank + 1) * 16].contiguous(),
            case.w2_scale[:, :, rank * 2 : (rank + 1) * 2].contiguous(),
            case.topk_weights,
            case.topk_ids,
            group_size=64,
            path=path,
        )
        assert torch.equal(result, expected)


def test_what_is_refused() -> None:
    case = make_case(tokens=2)
    table, _memory = table_of(case)
    good = {"inter": 128, "group_size": 128}
    for changes, reason in (
        ({"group_size": 16}, "group_size: expected 32, 64 or 128"),
        ({"inter": 100}, "inter: expected a width"),
        ({"down_stride": 192}, "down_stride: expected a width"),
        ({"inter": 256, "down_stride": 128}, "at least inter, 256, found 128"),
        ({"num_threads": 0}, "num_threads"),
    ):
        with pytest.raises(KernelError, match=reason):
            table_experts(case.hidden_states, table, case.topk_weights, case.topk_ids, **{**good, **changes})  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=r"table: expected shape \[24, 6\]"):
        table_experts(case.hidden_states, table[:, :5].contiguous(), case.topk_weights, case.topk_ids, **good)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=r"topk_ids\[0, 0\]: expected -1 or 0..23, found 24"):
        table_experts(case.hidden_states, table, case.topk_weights, torch.full((2, 4), 24), **good)  # type: ignore[arg-type]
    for column in range(6):
        crooked = table.clone()
        crooked[3, column] += 1
        with pytest.raises(KernelError, match="expert 3 is not"):
            check_addresses(crooked)
