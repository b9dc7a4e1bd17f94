// What the two AVX-512 paths share: sixteen words a line, and a scale for each of their lanes.
#pragma once

#include <immintrin.h>

#include "tile.h"

namespace moe4 {
namespace {

struct Avx512Lanes {
    using Acc = __m512;
    using Raw = __m512i;
    static constexpr int kLanes = 16;

    static MOE4_INLINE Acc zero() { return _mm512_setzero_ps(); }
    static MOE4_INLINE __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }
    static MOE4_INLINE Raw load(const uint32_t* words) { return _mm512_loadu_si512(words); }
    static MOE4_INLINE Raw load_first(const uint32_t* words, int count) {
        return _mm512_maskz_loadu_epi32(first_lanes(count), words);
    }
    static MOE4_INLINE Acc multiply_add(Acc a, Acc b, Acc c) { return _mm512_fmadd_ps(a, b, c); }
    static MOE4_INLINE float sum(Acc a) { return _mm512_reduce_add_ps(a); }

    // 128 codes a line: one group, two, or four. `bits` holds their scales, the first one lowest.
    template <int G>
    static MOE4_INLINE Acc spread(uint64_t bits) {
        if constexpr (G == 128) return _mm512_set1_ps(bf16_to_float(static_cast<uint16_t>(bits)));
        const __m128i wide = _mm_cvtepu16_epi32(_mm_cvtsi64_si128(static_cast<long long>(bits)));
        const __m512i lane = G == 64 ? _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)
                                     : _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        return _mm512_castsi512_ps(
            _mm512_permutexvar_epi32(lane, _mm512_castsi128_si512(_mm_slli_epi32(wide, 16))));
    }
    template <int G>
    static MOE4_INLINE Acc scales(const uint16_t* scale) {
        uint64_t bits = 0;
        __builtin_memcpy(&bits, scale, 2 * (kLineCodes / G));
        return spread<G>(bits);
    }
    template <int G>
    static MOE4_INLINE Acc scales_first(const uint16_t* scale, int count) {
        uint64_t bits = 0;
        for (int i = 0; i < count * 8 / G; ++i) bits |= static_cast<uint64_t>(scale[i]) << (16 * i);
        return _mm512_maskz_mov_ps(first_lanes(count), spread<G>(bits));
    }
};

}  // namespace
}  // namespace moe4
