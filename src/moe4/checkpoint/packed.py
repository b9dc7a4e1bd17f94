"""INT4 codes and the int32 words that hold them: the on-disk contract of a release.

compressed-tensors `pack-quantized`, 4 bits, symmetric. A weight of shape [out, in] is stored as

    weight_packed  int32 [out, in / 8]           eight codes a word, code k at bits 4k .. 4k + 3, stored as q
    + 8 weight_scale   bf16  [out, in / group_size]  in the original column order; may be negative
    weight_shape   int64 [2]                     (out, in)

and means W[i, j] = q[i, j] * weight_scale[i, j // group_size] with q in -8 .. 7.

Golden vector: the codes -8, -7, -1, 0, 1, 2, 6, 7 are the word 0xfea98710.
"""

import torch
from torch import Tensor

CODE_MIN = -8
CODE_MAX = 7
CODES_PER_WORD = 8


def pack(codes: Tensor) -> Tensor:
    """Pack codes, int8 [..., in] in -8 .. 7 with `in` a multiple of 8, into int32 words [..., in / 8]."""
    if codes.dtype is not torch.int8:
        raise ValueError(f"codes must be int8, found {codes.dtype}")
    if codes.shape[-1] % CODES_PER_WORD:
        raise ValueError(
            f"the last dimension must be a multiple of {CODES_PER_WORD}, found {codes.shape[-1]}"
        )
    if codes.numel() and (int(codes.min()) < CODE_MIN or int(codes.max()) > CODE_MAX):
        raise ValueError(f"codes must lie in {CODE_MIN}..{CODE_MAX}")
    nibbles = (codes + 8).view(torch.uint8).view(*codes.shape[:-1], -1, 4, 2)
    pairs = nibbles[..., 0] | (nibbles[..., 1] << 4)
    # Four bytes, the lowest first, are one little-endian word.
    return pairs.contiguous().view(torch.int32).squeeze(-1)


def unpack(words: Tensor, num_bits: int = 4) -> Tensor:
    """Unpack int32 words [..., n] into int8 codes: [..., 8 n] in -8 .. 7, the inverse of `pack`.

    With 8 bits: [..., 4 n] in -128 .. 127, stored as q + 128.
    """
    if words.dtype is not torch.int32:
        raise ValueError(f"words must be int32, found {words.dtype}")
    pairs = words.contiguous().unsqueeze(-1).view(torch.uint8)
    if num_bits == 8:
        return (pairs ^ 0x80).view(torch.int8).flatten(-2)
    nibbles = torch.stack((pairs & 0xF, pairs >> 4), dim=-1)
    return (nibbles.view(torch.int8) - 8).flatten(-3)


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the weights, float32 [out, in], of codes int8 [out, in] and scales [out, in / group].

    With bf16 scales every product is exact in float32; rounded to bf16 it is bit for bit what
    compressed-tensors' own decompression gives.
    """
    out_features, in_features = codes.shape
    num_groups = scales.shape[1]
    grouped = codes.view(out_features, num_groups, in_features // num_groups)
    return (grouped.float() * scales.float().unsqueeze(-1)).view(out_features, in_features)
