// AVX-VNNI, of processors that have it without AVX-512 (Intel's since Alder Lake): `vpdpbusd` in vectors of 32 bytes.
#include "avx2_planes.h"

namespace moe4 {
namespace {

struct Ops : Avx2Planes {
    using Part = Sums;

    static MOE4_INLINE Part dot(Part sum, Bytes codes, Bytes elements) {
#ifdef __AVXVNNI__
        return _mm256_dpbusd_avx_epi32(sum, codes, elements);
#else
        return _mm256_dpbusd_epi32(sum, codes, elements);  // the same of AVX-512, with which tests build this file
#endif
    }
    static MOE4_INLINE Sums join(Part high, Part low) { return join_sums(high, low); }
};

}  // namespace

const Path kAvxVnniInt16Path = {"avxvnni_int16", 2, nullptr, multiply_planes<Ops>, arrange_planes, sizeof(Head)};

}  // namespace moe4
