// planes.h in vectors of 32 bytes, of AVX2 and FMA; the paths differ in how they multiply.
#pragma once

#include <immintrin.h>

#include "planes.h"

namespace moe4 {
namespace {

struct Avx2Planes {
    using Bytes = __m256i;
    using Sums = __m256i;
    using Floats = __m256;
    static constexpr int kHalves = 2;

    static MOE4_INLINE __m256i zero() { return _mm256_setzero_si256(); }
    static MOE4_INLINE Bytes load(const char* row, int64_t to_other_row) {
        const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
        const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + to_other_row));
        return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    }
    static MOE4_INLINE Bytes even_codes(Bytes bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
    static MOE4_INLINE Bytes odd_codes(Bytes bytes) { return even_codes(_mm256_srli_epi16(bytes, 4)); }
    static MOE4_INLINE Bytes elements(const char* x) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    }
    static MOE4_INLINE Sums join_sums(Sums high, Sums low) {
        return _mm256_add_epi32(_mm256_slli_epi32(high, 8), low);
    }
    static MOE4_INLINE Sums add_up(Sums a, Sums b, Sums c, Sums d) {
        return _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    }
    static MOE4_INLINE Floats no_floats() { return _mm256_setzero_ps(); }
    static MOE4_INLINE Floats add_scaled(Sums sums, const float* scales, const Head& head, Floats total) {
        const Floats scale = _mm256_mul_ps(_mm256_loadu_ps(scales), _mm256_set1_ps(head.scale));
        const Sums all = _mm256_add_epi32(sums, _mm256_set1_epi32(head.offset));
        return _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(all), total);
    }
    static MOE4_INLINE void store(float* y, Floats total) { _mm256_storeu_ps(y, total); }
};

}  // namespace
}  // namespace moe4
