"""`fused_experts`: check every argument, choose a kernel path, run it."""

from collections.abc import Callable

import torch
from torch import Tensor

from moe4.errors import KernelError
from moe4.kernels import _experts
from moe4.kernels.paths import path_index

GROUP_SIZES = (32, 64, 128)
HIDDEN_DTYPES = {torch.bfloat16: _experts.BF16, torch.float16: _experts.F16, torch.float32: _experts.F32}
ID_DTYPES = (torch.int32, torch.int64)


def fused_experts(
    hidden_states: Tensor,
    w13_packed: Tensor,
    w13_scale: Tensor,
    w2_packed: Tensor,
    w2_scale: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    group_size: int,
    num_threads: int | None = None,
    out: Tensor | None = None,
    path: str | None = None,
) -> Tensor:
    """Return sum_k weight_k * down_k(silu(gate_k(x)) * up_k(x)) over each token's experts.

    All tensors are on the CPU; the weights are contiguous and hold the bytes of a compressed-tensors
    `pack-quantized` checkpoint (int32 words of eight codes + 8, least significant first; symmetric; scales of
    either sign).

    hidden_states: [tokens, hidden], bfloat16, float16 or float32.
    w13_packed: int32 [experts, 2 * inter, hidden / 8], gate rows first, then up rows.
    w13_scale: bfloat16 [experts, 2 * inter, hidden / group_size].
    w2_packed: int32 [experts, hidden, inter / 8].
    w2_scale: bfloat16 [experts, hidden, inter / group_size].
    topk_weights: float32 [tokens, top_k].
    topk_ids: int32 or int64 [tokens, top_k]. An id of -1 is skipped; repeated ids add up.
    group_size: 32, 64 or 128.
    num_threads: at most this many threads; None means torch.get_num_threads().
    out: written and returned if given: contiguous [tokens, hidden] in hidden_states' dtype; may be
        hidden_states itself.
    path: one of available_paths(); None means selected_path().

    A token's row depends on that token alone, bit for bit: not on the batch it is in, nor on num_threads.
    Accumulation is float32. Some paths round hidden_states and silu(gate) * up: avx512_bf16 and neon_bf16 to
    bfloat16; those named int16 to sixteen-bit and avx512_vnni to eight-bit integers, each group of a token by
    itself, with the group's largest magnitude as the largest integer. The others keep them in
    float32.

    Raises KernelError, before any weight is read, if an argument is not as above.
    """
    _check(hidden_states, w13_packed, w13_scale, w2_packed, w2_scale, topk_weights, topk_ids, group_size)
    return call_kernel(
        _experts.run,
        hidden_states,
        topk_weights,
        topk_ids,
        group_size=group_size,
        num_threads=num_threads,
        out=out,
        path=path,
        inter=w13_packed.shape[1] // 2,
        experts=w13_packed.shape[0],
        w13=w13_packed.data_ptr(),
        w13_scale=w13_scale.data_ptr(),
        w2=w2_packed.data_ptr(),
        w2_scale=w2_scale.data_ptr(),
    )


def call_kernel(
    function: Callable[..., None],
    hidden_states: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    group_size: int,
    num_threads: int | None,
    out: Tensor | None,
    path: str | None,
    **own: int,
) -> Tensor:
    """Call a forward of the extension with what all of them take and its `own` arguments; return `out`."""
    out, threads = _out_and_threads(hidden_states, out, num_threads)
    x, weights, ids = hidden_states.contiguous(), topk_weights.contiguous(), topk_ids.long().contiguous()
    try:
        function(
            path_index(path),
            tokens=x.shape[0],
            hidden=x.shape[1],
            top_k=ids.shape[1],
            group_size=group_size,
            num_threads=threads,
            dtype=HIDDEN_DTYPES[x.dtype],
            x=x.data_ptr(),
            out=out.data_ptr(),
            weights=weights.data_ptr(),
            ids=ids.data_ptr(),
            **own,
        )
    except _experts.BadIdError as error:
        raise KernelError(f"topk_ids{error}") from None
    return out


def _check(
    hidden_states: Tensor,
    w13_packed: Tensor,
    w13_scale: Tensor,
    w2_packed: Tensor,
    w2_scale: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    group_size: int,
) -> None:
    """Raise KernelError unless dtypes, shapes, strides and devices are as `fused_experts` says."""
    if group_size not in GROUP_SIZES:
        raise KernelError(f"group_size: expected 32, 64 or 128, found {group_size}")
    for name, tensor, dims in (
        ("hidden_states", hidden_states, 2),
        ("w13_packed", w13_packed, 3),
        ("topk_ids", topk_ids, 2),
    ):
        if not isinstance(tensor, Tensor) or tensor.dim() != dims:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise KernelError(f"{name}: expected a tensor of {dims} dimensions, found {found}")
    tokens, hidden = hidden_states.shape
    experts, rows, _ = w13_packed.shape
    inter, top_k = rows // 2, topk_ids.shape[1]
    if rows % 2:
        raise KernelError(f"w13_packed: expected an even number of rows (gate, then up), found {rows}")
    for name, width in (("hidden_states", hidden), ("w13_packed", inter)):
        if width % group_size or width == 0:
            raise KernelError(
                f"{name}: expected a width that is a multiple of group_size {group_size}, found {width}"
            )
    expect_tensor("hidden_states", hidden_states, (tokens, hidden), tuple(HIDDEN_DTYPES))
    expect_tensor("w13_packed", w13_packed, (experts, rows, hidden // 8), (torch.int32,), contiguous=True)
    expect_tensor(
        "w13_scale", w13_scale, (experts, rows, hidden // group_size), (torch.bfloat16,), contiguous=True
    )
    expect_tensor("w2_packed", w2_packed, (experts, hidden, inter // 8), (torch.int32,), contiguous=True)
    expect_tensor(
        "w2_scale", w2_scale, (experts, hidden, inter // group_size), (torch.bfloat16,), contiguous=True
    )
    expect_tensor("topk_weights", topk_weights, (tokens, top_k), (torch.float32,))
    expect_tensor("topk_ids", topk_ids, (tokens, top_k), ID_DTYPES)


def _out_and_threads(
    hidden_states: Tensor, out: Tensor | None, num_threads: int | None
) -> tuple[Tensor, int]:
    """Return where the result goes and the number of threads, checked, or their defaults."""
    if out is None:
        out = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
    else:
        expect_tensor("out", out, hidden_states.shape, (hidden_states.dtype,), contiguous=True)
    return out, num_threads_or_default(num_threads)


def num_threads_or_default(num_threads: int | None) -> int:
    """Return the number of threads, torch's if None is given. Raises KernelError if it is less than one."""
    threads = torch.get_num_threads() if num_threads is None else num_threads
    if threads < 1:
        raise KernelError(f"num_threads: expected at least 1, found {threads}")
    return threads


def expect_tensor(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    *,
    contiguous: bool = False,
) -> None:
    """Raise KernelError naming the argument, what was expected and what was found."""
    if not isinstance(tensor, Tensor):
        raise KernelError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise KernelError(f"{name}: expected a dense tensor on cpu, found {tensor.layout} on {tensor.device}")
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise KernelError(
            f"{name}: expected dtype {expected}, found {str(tensor.dtype).removeprefix('torch.')}"
        )
    if tensor.shape != torch.Size(shape):
        raise KernelError(f"{name}: expected shape {list(shape)}, found {list(tensor.shape)}")
    if contiguous and not tensor.is_contiguous():
        raise KernelError(f"{name}: expected contiguous memory, found strides {list(tensor.stride())}")
