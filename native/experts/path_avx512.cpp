// AVX-512 (F, BW, DQ, VL) without bf16: one step a code, decoded by a table of sixteen floats.
#include "lanes_avx512.h"

namespace moe4 {
namespace {

struct Ops : Avx512Lanes {
    using Elem = float;
    using Weight = __m512;
    static constexpr int kSteps = 8, kStepElems = 16;
    static constexpr int kRows = 2, kTokens = 6;

    static MOE4_INLINE Weight decode(Raw raw, int step) {
        // vpermps reads the low four bits of each index, so the codes above need no masking.
        const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
        return _mm512_permutexvar_ps(_mm512_srli_epi32(raw, 4 * step), table);
    }
    static MOE4_INLINE Weight load_x(const float* x) { return _mm512_loadu_ps(x); }
    static MOE4_INLINE Acc dot(Acc sum, Weight w, Weight x) { return _mm512_fmadd_ps(w, x, sum); }
};

}  // namespace

const Path kAvx512Path = {"avx512", sizeof(float), arrange_floats<Ops>, multiply<Ops>};

}  // namespace moe4
