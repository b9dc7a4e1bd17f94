"""The kernels read the words that compressed-tensors writes."""

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from moe4.kernels import available_paths, fused_experts
from moe4.kernels.reference import unpack_codes

seeds = st.integers(0, 2**31)


@given(rows=st.integers(1, 5), words=st.integers(1, 40), seed=seeds)
def test_the_reference_decodes_what_compressed_tensors_packs(rows: int, words: int, seed: int) -> None:
    codes = torch.randint(-8, 8, (rows, 8 * words), generator=torch.Generator().manual_seed(seed)).to(
        torch.int8
    )
    packed = pack_to_int32(codes, 4)
    assert torch.equal(unpack_codes(packed), codes)
    assert torch.equal(unpack_from_int32(packed, 4, codes.shape), codes)


@given(
    path=st.sampled_from(available_paths()),
    group_size=st.sampled_from((32, 64, 128)),
    hidden_groups=st.integers(1, 6),
    inter_groups=st.integers(1, 4),
    tokens=st.integers(1, 9),
    seed=seeds,
)
@settings(deadline=None)
def test_a_path_computes_with_the_codes_that_were_packed(
    path: str, group_size: int, hidden_groups: int, inter_groups: int, tokens: int, seed: int
) -> None:
    """The oracle never unpacks: it multiplies by the codes themselves."""
    g = torch.Generator().manual_seed(seed)
    hidden, inter = hidden_groups * group_size, inter_groups * group_size

    def matrix(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        codes = torch.randint(-8, 8, (rows, columns), generator=g).to(torch.int8)
        scale = (torch.randn(rows, columns // group_size, generator=g) / (4.6 * columns**0.5)).bfloat16()
        scale[torch.rand(scale.shape, generator=g) < 0.1] = 0  # as a source in INT4 may have them
        weight = codes.double() * scale.double().repeat_interleave(group_size, 1)
        return weight, pack_to_int32(codes, 4).unsqueeze(0), scale.unsqueeze(0)

    w13, w13_packed, w13_scale = matrix(2 * inter, hidden)
    w2, w2_packed, w2_scale = matrix(hidden, inter)
    x = torch.randn(tokens, hidden, generator=g).bfloat16()
    gate, up = (x.double() @ w13.T).split(inter, 1)
    expected = (silu(gate) * up) @ w2.T
    out = fused_experts(
        x,
        w13_packed,
        w13_scale,
        w2_packed,
        w2_scale,
        torch.ones(tokens, 1),
        torch.zeros(tokens, 1, dtype=torch.int64),
        group_size=group_size,
        path=path,
    )
    # Two bfloat16 roundings, relative to the norm, as in test_fused_experts.py; int8 moves a group by at most
    # root(128) / 254 of its norm, three times, int16 by far less than bfloat16. A code in the wrong place
    # makes an error of the result's size.
    relative = 2**0.5 * 2.0**-8 if path != "avx512_vnni" else 3**0.5 * 128**0.5 / 254
    assert (out.double() - expected).norm() <= relative * expected.norm()
