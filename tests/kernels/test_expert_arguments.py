"""What `fused_experts` refuses, and what it says."""

import dataclasses

import pytest
import torch
from expert_cases import make_case

from moe4.errors import KernelError
from moe4.kernels import fused_experts


def call(group_size: int = 128, **changes: object) -> torch.Tensor:
    case = make_case(tokens=3)
    arguments = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    return fused_experts(**{**arguments, "group_size": group_size, **changes})


GOOD = make_case(tokens=3)


def test_the_unchanged_call_is_accepted() -> None:
    assert call().shape == (3, 256)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("bad_id", [24, -2, 2**31 - 1, -(2**31)])
def test_ids_outside_the_experts(bad_id: int, dtype: torch.dtype) -> None:
    ids = GOOD.topk_ids.to(dtype)
    ids[2, 1] = bad_id
    with pytest.raises(KernelError, match=rf"^topk_ids\[2, 1\]: expected -1 or 0\.\.23, found {bad_id}$"):
        call(topk_ids=ids)


def test_ids_beyond_32_bits() -> None:
    ids = GOOD.topk_ids.clone()
    ids[0, 0] = 2**32  # 0 if it were cut to 32 bits
    with pytest.raises(KernelError, match=r"found 4294967296"):
        call(topk_ids=ids)


def test_a_bad_id_leaves_out_untouched() -> None:
    ids = GOOD.topk_ids.clone()
    ids[2, 3] = 99
    out = torch.full_like(GOOD.hidden_states, 7)
    with pytest.raises(KernelError):
        call(topk_ids=ids, out=out)
    assert torch.equal(out, torch.full_like(out, 7))


SHAPES = {
    "hidden_states": GOOD.hidden_states[0],
    "w13_packed": GOOD.w13_packed[:, :-1].contiguous(),
    "w13_scale": GOOD.w13_scale[:-1].contiguous(),
    "w2_packed": GOOD.w2_packed[:, :-1].contiguous(),
    "w2_scale": GOOD.w2_scale.repeat(1, 1, 2),
    "topk_weights": GOOD.topk_weights[:, :-1],
    "topk_ids": GOOD.topk_ids[0],
}


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_shape(name: str) -> None:
    with pytest.raises(KernelError, match=f"^{name}: expected .*, found .*[0-9]"):
        call(**{name: SHAPES[name]})


def test_an_expert_too_few_in_w2() -> None:
    with pytest.raises(
        KernelError, match=r"^w2_packed: expected shape \[24, 256, 16\], found \[23, 256, 16\]$"
    ):
        call(w2_packed=GOOD.w2_packed[:-1])


def test_hidden_states_narrower_than_the_weights() -> None:
    with pytest.raises(
        KernelError, match=r"^w13_packed: expected shape \[24, 256, 16\], found \[24, 256, 32\]$"
    ):
        call(hidden_states=GOOD.hidden_states[:, :128])


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_dtype(name: str) -> None:
    with pytest.raises(KernelError, match=f"^{name}: expected dtype .*, found float64$"):
        call(**{name: getattr(GOOD, name).double()})


@pytest.mark.parametrize("name", ["w13_packed", "w13_scale", "w2_packed"])
def test_weights_that_are_not_contiguous(name: str) -> None:
    strided = getattr(GOOD, name).transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(KernelError, match=f"^{name}: expected contiguous memory, found strides"):
        call(**{name: strided})


@pytest.mark.parametrize("name", SHAPES)
def test_another_device(name: str) -> None:
    with pytest.raises(KernelError, match=f"^{name}: expected a dense tensor on cpu, found .* on meta$"):
        call(**{name: getattr(GOOD, name).to("meta")})


@pytest.mark.parametrize("name", SHAPES)
def test_not_a_tensor(name: str) -> None:
    with pytest.raises(KernelError, match=f"^{name}: expected a tensor.*, found list$"):
        call(**{name: [1, 2]})


def test_sparse_weights() -> None:
    with pytest.raises(
        KernelError, match=r"^w2_packed: expected a dense tensor on cpu, found torch.sparse_coo"
    ):
        call(w2_packed=GOOD.w2_packed.to_sparse())


@pytest.mark.parametrize("group_size", [0, -1, 16, 256])
def test_group_size_unknown(group_size: int) -> None:
    with pytest.raises(KernelError, match=f"^group_size: expected 32, 64 or 128, found {group_size}$"):
        call(group_size=group_size)


def test_group_size_that_is_not_the_scales() -> None:
    with pytest.raises(
        KernelError, match=r"^w13_scale: expected shape \[24, 256, 4\], found \[24, 256, 2\]$"
    ):
        call(group_size=64)


def test_width_not_a_multiple_of_the_group() -> None:
    with pytest.raises(
        KernelError, match=r"^hidden_states: expected a width that is a multiple of group_size 128"
    ):
        call(hidden_states=torch.zeros(3, 200, dtype=torch.bfloat16))
    with pytest.raises(
        KernelError, match=r"^w13_packed: expected a width that is a multiple of group_size 128"
    ):
        call(w13_packed=GOOD.w13_packed[:, :192].contiguous())


def test_odd_number_of_gate_and_up_rows() -> None:
    with pytest.raises(KernelError, match=r"^w13_packed: expected an even number of rows"):
        call(w13_packed=GOOD.w13_packed[:, :255].contiguous())


@pytest.mark.parametrize("num_threads", [0, -4])
def test_number_of_threads(num_threads: int) -> None:
    with pytest.raises(KernelError, match=f"^num_threads: expected at least 1, found {num_threads}$"):
        call(num_threads=num_threads)


def test_out_of_another_kind() -> None:
    with pytest.raises(KernelError, match=r"^out: expected shape \[3, 256\], found \[2, 256\]$"):
        call(out=torch.empty(2, 256, dtype=torch.bfloat16))
    with pytest.raises(KernelError, match=r"^out: expected dtype bfloat16, found float32$"):
        call(out=torch.empty(3, 256))
    with pytest.raises(KernelError, match=r"^out: expected contiguous memory"):
        call(out=torch.empty(256, 3, dtype=torch.bfloat16).T)


def test_path_unknown() -> None:
    with pytest.raises(
        KernelError, match=r"^path: expected one of .*portable.* on this machine, found 'sse9'$"
    ):
        call(path="sse9")
