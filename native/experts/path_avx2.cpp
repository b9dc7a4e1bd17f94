// AVX2 and FMA: eight words a line, eight codes of each, one step a code.
#include <immintrin.h>

#include "tile.h"

namespace moe4 {
namespace {

struct Ops {
    using Elem = float;
    using Acc = __m256;
    using Raw = __m256i;  // codes as two's complement nibbles
    using Weight = __m256;
    static constexpr int kLanes = 8, kSteps = 8, kStepElems = 8;
    static constexpr int kRows = 2, kTokens = 2;  // 4 totals, 4 line sums, 2 + 1 operands of 16 registers

    static MOE4_INLINE Acc zero() { return _mm256_setzero_ps(); }
    static MOE4_INLINE Raw flip(__m256i words) { return _mm256_xor_si256(words, _mm256_set1_epi32(0x88888888)); }
    static MOE4_INLINE __m256i first_lanes(int count) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static MOE4_INLINE Raw load(const uint32_t* words) {
        return flip(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
    }
    static MOE4_INLINE Raw load_first(const uint32_t* words, int count) {
        return flip(_mm256_maskload_epi32(reinterpret_cast<const int*>(words), first_lanes(count)));
    }
    static MOE4_INLINE Weight decode(Raw raw, int step) {
        return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(raw, 28 - 4 * step), 28));
    }
    static MOE4_INLINE Weight load_x(const float* x) { return _mm256_loadu_ps(x); }
    static MOE4_INLINE Acc dot(Acc sum, Weight w, Weight x) { return _mm256_fmadd_ps(w, x, sum); }
    static MOE4_INLINE Acc multiply_add(Acc a, Acc b, Acc c) { return _mm256_fmadd_ps(a, b, c); }

    // 64 codes a line: part of one group, one group, or two.
    template <int G>
    static MOE4_INLINE Acc scales(const uint16_t* scale) {
        if constexpr (G >= 64) return _mm256_set1_ps(bf16_to_float(scale[0]));
        return _mm256_setr_m128(_mm_set1_ps(bf16_to_float(scale[0])), _mm_set1_ps(bf16_to_float(scale[1])));
    }
    template <int G>
    static MOE4_INLINE Acc scales_first(const uint16_t* scale, int count) {
        // A row ends with a whole group, so a part of a line is one group of 32.
        const Acc all = _mm256_set1_ps(bf16_to_float(scale[0]));
        return _mm256_and_ps(all, _mm256_castsi256_ps(first_lanes(count)));
    }
    static MOE4_INLINE float sum(Acc a) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
};

}  // namespace

const Path kAvx2Path = {"avx2", sizeof(float), arrange_floats<Ops>, multiply<Ops>};

}  // namespace moe4
