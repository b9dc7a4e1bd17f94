"""Linear layers: `int4_linear` on the experts' paths, `int8_linear` on the instructions of avx512_bf16."""

import torch
from torch import Tensor

from moe4.errors import KernelError
from moe4.kernels import _experts
from moe4.kernels.op import GROUP_SIZES, HIDDEN_DTYPES, expect_tensor, num_threads_or_default
from moe4.kernels.paths import path_index

INT4_ROWS = 32  # rows of INT4 weights must be a multiple of this
# Rows and columns of int8 weights must be multiples of these.
INT8_ROWS, INT8_COLUMNS = 4, 32
_USABLE = _experts.int8_linear_is_usable()


def has_int4_linear(rows: int, columns: int, group_size: int) -> bool:
    """Return whether `int4_linear` takes weights of this shape."""
    whole = group_size in GROUP_SIZES and rows % INT4_ROWS == 0 and columns % group_size == 0
    return whole and rows > 0 and columns > 0


def int4_linear(
    x: Tensor,
    weight_packed: Tensor,
    weight_scale: Tensor,
    *,
    group_size: int,
    num_threads: int | None = None,
    path: str | None = None,
) -> Tensor:
    """Return x @ W.T in x's dtype, [tokens, rows], for INT4 weights as a release stores them (W4A16).

    x: [tokens, columns], bfloat16, float16 or float32.
    weight_packed: int32 [rows, columns / 8], contiguous; rows a multiple of 32, columns of group_size.
    weight_scale: bfloat16 [rows, columns / group_size], contiguous.
    group_size: 32, 64 or 128.
    num_threads, path: as in `fused_experts`, which also says what each path rounds.

    Accumulation is float32. A token's row depends on that token alone, bit for bit.

    Raises KernelError if an argument is not as above.
    """
    for name, tensor in (("x", x), ("weight_packed", weight_packed)):
        _expect_matrix(name, tensor)
    rows, columns = weight_packed.shape[0], weight_packed.shape[1] * 8
    if group_size not in GROUP_SIZES:
        raise KernelError(f"group_size: expected 32, 64 or 128, found {group_size}")
    if not has_int4_linear(rows, columns, group_size):
        raise KernelError(
            f"weight_packed: expected rows a multiple of {INT4_ROWS} and columns of group_size {group_size}, "
            f"found {rows} rows and {columns} columns"
        )
    expect_tensor("x", x, (x.shape[0], columns), tuple(HIDDEN_DTYPES))
    expect_tensor("weight_packed", weight_packed, (rows, columns // 8), (torch.int32,), contiguous=True)
    expect_tensor(
        "weight_scale", weight_scale, (rows, columns // group_size), (torch.bfloat16,), contiguous=True
    )
    threads = num_threads_or_default(num_threads)
    x = x.contiguous()
    out = torch.empty(x.shape[0], rows, dtype=x.dtype)
    _experts.int4_linear(
        path_index(path),
        tokens=x.shape[0],
        rows=rows,
        columns=columns,
        group_size=group_size,
        num_threads=threads,
        dtype=HIDDEN_DTYPES[x.dtype],
        x=x.data_ptr(),
        packed=weight_packed.data_ptr(),
        scales=weight_scale.data_ptr(),
        out=out.data_ptr(),
    )
    return out


def has_int8_linear(rows: int, columns: int) -> bool:
    """Return whether `int8_linear` takes codes of this shape on this machine."""
    return _USABLE and rows % INT8_ROWS == 0 and columns % INT8_COLUMNS == 0 and columns > 0


def int8_linear(x: Tensor, codes: Tensor, scales: Tensor, *, num_threads: int | None = None) -> Tensor:
    """Return x @ (codes * scales).T, bfloat16 [tokens, rows]; activations are not quantized (W8A16).

    x: bfloat16 [tokens, columns].
    codes: int8 [rows, columns], contiguous; rows a multiple of 4, columns of 32.
    scales: bfloat16 [rows], contiguous.
    num_threads: at most this many threads; None means torch.get_num_threads().

    Accumulation is float32, the scale multiplies the sum, and that is rounded once. A token's row depends on
    that token alone, bit for bit.

    Raises KernelError if an argument is not as above, or if the processor has no AVX512-BF16.
    """
    for name, tensor in (("x", x), ("codes", codes)):
        _expect_matrix(name, tensor)
    rows, columns = codes.shape
    if not _USABLE:
        raise KernelError("int8_linear: expected a processor with AVX512-BF16, which this one lacks")
    if not has_int8_linear(rows, columns):
        raise KernelError(
            f"codes: expected rows a multiple of {INT8_ROWS} and columns of {INT8_COLUMNS}, "
            f"found {list(codes.shape)}"
        )
    expect_tensor("x", x, (x.shape[0], columns), (torch.bfloat16,))
    expect_tensor("codes", codes, (rows, columns), (torch.int8,), contiguous=True)
    expect_tensor("scales", scales, (rows,), (torch.bfloat16,), contiguous=True)
    threads = num_threads_or_default(num_threads)
    x = x.contiguous()
    out = torch.empty(x.shape[0], rows, dtype=torch.bfloat16)
    _experts.int8_linear(
        tokens=x.shape[0],
        rows=rows,
        columns=columns,
        num_threads=threads,
        x=x.data_ptr(),
        codes=codes.data_ptr(),
        scales=scales.data_ptr(),
        out=out.data_ptr(),
    )
    return out


def _expect_matrix(name: str, tensor: Tensor) -> None:
    """Raise KernelError unless `tensor` has two dimensions, of which the other checks make use."""
    if not isinstance(tensor, Tensor) or tensor.dim() != 2:
        found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise KernelError(f"{name}: expected a tensor of 2 dimensions, found {found}")
