// AVX2: `vpmaddubsw` adds two products into sixteen bits. A code + 8 is at most 15 and an element of a plane at most 128
// in magnitude, so a lane holds the eight such sums of a group of 128, 30,720, exactly.
#include "avx2_planes.h"

namespace moe4 {
namespace {

struct Ops : Avx2Planes {
    using Part = __m256i;  // sixteen sums of sixteen bits

    static MOE4_INLINE Part dot(Part sum, Bytes codes, Bytes elements) {
        return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, elements));
    }
    static MOE4_INLINE Sums widen(Part part) { return _mm256_madd_epi16(part, _mm256_set1_epi16(1)); }
    static MOE4_INLINE Sums join(Part high, Part low) { return join_sums(widen(high), widen(low)); }
};

}  // namespace

const Path kAvx2Int16Path = {"avx2_int16", 2, nullptr, multiply_planes<Ops>, arrange_planes, sizeof(Head)};

}  // namespace moe4
