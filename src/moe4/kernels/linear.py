"""`int8_linear`: a linear layer with 8-bit weights, on the instructions of the path avx512_bf16."""

import torch
from torch import Tensor

from moe4.errors import KernelError
from moe4.kernels import _experts
from moe4.kernels.op import expect_tensor, num_threads_or_default

# Rows and columns of the weights must be multiples of these.
INT8_ROWS, INT8_COLUMNS = 4, 32
_USABLE = _experts.int8_linear_is_usable()


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
    for name, tensor, dims in (("x", x, 2), ("codes", codes, 2)):
        if not isinstance(tensor, Tensor) or tensor.dim() != dims:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise KernelError(f"{name}: expected a tensor of {dims} dimensions, found {found}")
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
