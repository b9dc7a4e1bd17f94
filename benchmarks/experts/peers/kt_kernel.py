"""KTransformers' kt-kernel: its classes for raw INT4 weights.

The AVX512 class, which it prefers, takes any group size and reads its scales as if groups were 32 wide. So
it is given each scale four times where groups are 128: the same product. As it stands it is wrong, and
reported so.
"""

import time
from functools import partial

import torch
from torch import Tensor

from experts.contestant import EXACT_ACTIVATIONS
from experts.layer import Call, Layer
from experts.peers.engine import AbsentError, Run, Setting, Variant


def build(layer: Layer, setting: Setting, *, kind: str, group_size: int | None) -> Run:
    """Return the forward of the class `kind`, on groups of `group_size` or else the layer's own."""
    try:
        from kt_kernel import kt_kernel_ext
    except ImportError as error:
        raise AbsentError(f"kt-kernel cannot be imported: {error}") from error
    if not hasattr(kt_kernel_ext.moe, kind):
        raise AbsentError(
            f"kt-kernel's build for this processor ({kt_kernel_ext.__cpu_variant__}) has no {kind}"
        )
    group_size = group_size or layer.group_size
    repeats = layer.group_size // group_size
    inter, top_k = layer.inter, layer.top_k
    weights = (layer.w13_packed[:, :inter], layer.w13_packed[:, inter:], layer.w2_packed)
    scales = (layer.w13_scale[:, :inter], layer.w13_scale[:, inter:], layer.w2_scale)
    weights = tuple(tensor.contiguous() for tensor in weights)
    scales = tuple(tensor.repeat_interleave(repeats, dim=-1).contiguous() for tensor in scales)

    pool = kt_kernel_ext.CPUInfer(setting.num_threads)
    config = kt_kernel_ext.moe.MOEConfig(layer.experts, top_k, layer.hidden, inter, 0)
    config.max_len = setting.max_tokens
    config.gate_proj, config.up_proj, config.down_proj = (tensor.data_ptr() for tensor in weights)
    config.gate_scale, config.up_scale, config.down_scale = (tensor.data_ptr() for tensor in scales)
    config.quant_config.bits = 4
    config.quant_config.group_size = group_size
    config.quant_config.zero_point = False
    config.pool = pool.backend_
    moe = getattr(kt_kernel_ext.moe, kind)(config)
    places = torch.arange(layer.experts)
    pool.submit(moe.load_weights_task(places.data_ptr()))
    pool.sync()  # it has copied the weights

    def run(call: Call) -> tuple[float, Tensor]:
        x, topk_weights, topk_ids = call
        ids, out, tokens = (
            topk_ids.to(torch.int64),
            torch.empty_like(x),
            torch.tensor([len(x)], dtype=torch.int32),
        )
        start = time.perf_counter()
        pool.submit(
            moe.forward_task(
                tokens.data_ptr(),
                top_k,
                ids.data_ptr(),
                topk_weights.data_ptr(),
                x.data_ptr(),
                out.data_ptr(),
                False,
            )
        )
        pool.sync()
        return time.perf_counter() - start, out

    return run


INT8 = "activations rounded to INT8, a scale for 32"
VARIANTS = {
    "kt-kernel avx512": Variant(
        build=partial(build, kind="AMXInt4_KGroup_MOE", group_size=32),
        note=f"AMXInt4_KGroup_MOE, its choice for raw INT4; every scale repeated for groups of 32; {INT8}",
    ),
    "kt-kernel avx512 blocked": Variant(
        build=partial(build, kind="AMXInt4_KGroupBlocked_MOE", group_size=32),
        note=f"AMXInt4_KGroupBlocked_MOE; every scale repeated for groups of 32; {INT8}",
    ),
    "kt-kernel avx2": Variant(
        build=partial(build, kind="AVX2RawInt4_MOE", group_size=None),
        note="AVX2RawInt4_MOE on the layer's own groups; activations not quantized",
        max_error=EXACT_ACTIVATIONS,
    ),
    "kt-kernel avx512 own groups": Variant(
        build=partial(build, kind="AMXInt4_KGroup_MOE", group_size=None),
        note=f"AMXInt4_KGroup_MOE told the layer's own group size; {INT8}",
    ),
}
