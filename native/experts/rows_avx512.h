// Sixteen rows of a matrix as the sixteen lanes of an AVX-512 vector: reading their words and their scales.
//
// As in tile.h, everything is in an anonymous namespace and nothing of the C++ library is used.
#pragma once

#include <immintrin.h>

#include "path.h"

namespace moe4 {
namespace {

#define MOE4_INLINE inline __attribute__((always_inline))

using Floats = __m512;  // a float of each of sixteen rows

constexpr int kLanes = 16;  // rows of a vector

struct Words {
    __m512i word[4];
};

// Four 32-bit words of each of sixteen rows: row r in lane r.
MOE4_INLINE Words transpose(const __m512i (&v)[4]) {
    const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    return {{_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
             _mm512_unpackhi_epi64(b, d)}};
}

// Sixteen bytes of memory to a quarter of a vector. Written out, because GCC loads them into a register first, and an
// insertion from a register takes one of the two units that the decoding needs.
template <int Quarter>
MOE4_INLINE __m512i insert(__m512i v, const char* bytes) {
    __asm__("vinserti32x4 %2, %1, %0, %0" : "+v"(v) : "m"(*reinterpret_cast<const __m128i_u*>(bytes)), "i"(Quarter));
    return v;
}

// The four words at `first` and at the same place of the next fifteen rows.
MOE4_INLINE Words load_words(const char* first, int64_t row_bytes) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const char* p = first + i * row_bytes;
        v[i] = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        v[i] = insert<1>(v[i], p + 4 * row_bytes);
        v[i] = insert<2>(v[i], p + 8 * row_bytes);
        v[i] = insert<3>(v[i], p + 12 * row_bytes);
    }
    return transpose(v);
}

// While a block of rows is decoded, the next one is asked for, line by line, into the second cache, in the order in
// which it lies in memory; and a few lines of the block itself into the first. Where rows have gaps, the former is left
// to the processor.
MOE4_INLINE const char* prefetched(const Tile& tile, const char* rows, int64_t next_row, int64_t num_rows) {
    if (tile.packed_stride != tile.num_words) return rows;
    return next_row < tile.num_rows ? rows + num_rows * tile.num_words * 4 : tile.next;
}

// While a block of rows is decoded, the scales of the next one are asked for, too: the part from `begin` to `end`
// of `all`. Where rows have gaps, that is left to the processor as well.
MOE4_INLINE void prefetch_scales(const Tile& tile, int64_t next_row, int64_t num_rows, int64_t begin, int64_t end,
                                 int64_t all) {
    if (tile.packed_stride != tile.num_words) return;
    const char* from = next_row < tile.num_rows
                           ? reinterpret_cast<const char*>(tile.scale + next_row * tile.scale_stride)
                           : tile.next_scale;
    const int64_t bytes = num_rows * tile.scale_stride * 2;
    for (int64_t at = begin * bytes / all / 64 * 64; at < end * bytes / all; at += 64)
        _mm_prefetch(from + at, _MM_HINT_T1);
}

// The scales of `count` groups, at most eight, of sixteen rows.
MOE4_INLINE void load_scales(const uint16_t* first, int64_t row_groups, int count, Floats (&scale)[8]) {
    const __mmask8 mask = static_cast<__mmask8>((1u << count) - 1);
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const uint16_t* p = first + i * row_groups;
        v[i] = _mm512_castsi128_si512(_mm_maskz_loadu_epi16(mask, p));
        v[i] = _mm512_inserti32x4(v[i], _mm_maskz_loadu_epi16(mask, p + 4 * row_groups), 1);
        v[i] = _mm512_inserti32x4(v[i], _mm_maskz_loadu_epi16(mask, p + 8 * row_groups), 2);
        v[i] = _mm512_inserti32x4(v[i], _mm_maskz_loadu_epi16(mask, p + 12 * row_groups), 3);
    }
    const Words pairs = transpose(v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        scale[2 * i] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs.word[i], 16));
        scale[2 * i + 1] =
            _mm512_castsi512_ps(_mm512_and_si512(pairs.word[i], _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    }
}

}  // namespace
}  // namespace moe4
