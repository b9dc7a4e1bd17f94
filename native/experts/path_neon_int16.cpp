// NEON with dot products (Neoverse N1, Graviton2 and later): `sdot` adds four products of signed bytes to a sum. Codes
// are multiplied as code + 8, which a signed byte holds as well.
#include <arm_neon.h>

#include "planes.h"

namespace moe4 {
namespace {

struct Ops {
    using Bytes = int8x16_t;
    using Sums = int32x4_t;
    using Part = Sums;
    using Floats = float32x4_t;
    static constexpr int kHalves = 1;

    static MOE4_INLINE Part zero() { return vdupq_n_s32(0); }
    static MOE4_INLINE Bytes load(const char* row, int64_t) { return vld1q_s8(reinterpret_cast<const int8_t*>(row)); }
    static MOE4_INLINE Bytes even_codes(Bytes bytes) { return vandq_s8(bytes, vdupq_n_s8(15)); }
    static MOE4_INLINE Bytes odd_codes(Bytes bytes) {
        return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(bytes), 4));
    }
    static MOE4_INLINE Bytes elements(const char* x) { return vld1q_s8(reinterpret_cast<const int8_t*>(x)); }
    static MOE4_INLINE Part dot(Part sum, Bytes codes, Bytes elements) { return vdotq_s32(sum, codes, elements); }
    static MOE4_INLINE Sums join(Part high, Part low) { return vaddq_s32(vshlq_n_s32(high, 8), low); }
    static MOE4_INLINE Sums add_up(Sums a, Sums b, Sums c, Sums d) {
        return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
    }
    static MOE4_INLINE Floats no_floats() { return vdupq_n_f32(0); }
    static MOE4_INLINE Floats add_scaled(Sums sums, const float* scales, const Head& head, Floats total) {
        const Floats scale = vmulq_n_f32(vld1q_f32(scales), head.scale);
        return vfmaq_f32(total, scale, vcvtq_f32_s32(vaddq_s32(sums, vdupq_n_s32(head.offset))));
    }
    static MOE4_INLINE void store(float* y, Floats total) { vst1q_f32(y, total); }
};

}  // namespace

const Path kNeonInt16Path = {"neon_int16", 2, nullptr, multiply_planes<Ops>, arrange_planes, sizeof(Head)};

}  // namespace moe4
