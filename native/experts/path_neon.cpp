// NEON, which every 64-bit Arm has: four words a line, eight codes of each, one step a code.
#include <arm_neon.h>

#include "tile.h"

namespace moe4 {
namespace {

struct Ops {
    using Elem = float;
    using Acc = float32x4_t;
    using Raw = int32x4_t;  // codes as two's complement nibbles
    using Weight = float32x4_t;
    static constexpr int kLanes = 4, kSteps = 8, kStepElems = 4;
    static constexpr int kRows = 2, kTokens = 4;  // 8 totals, 8 line sums, 2 + 1 operands of 32 registers

    static MOE4_INLINE Acc zero() { return vdupq_n_f32(0); }
    static MOE4_INLINE Raw load(const uint32_t* words) {
        return vreinterpretq_s32_u32(veorq_u32(vld1q_u32(words), vdupq_n_u32(0x88888888u)));
    }
    // A line is 32 codes, the smallest group: no row ends within one.
    static MOE4_INLINE Raw load_first(const uint32_t*, int) { __builtin_unreachable(); }
    static MOE4_INLINE Weight decode(Raw raw, int step) {
        return vcvtq_f32_s32(vshrq_n_s32(vshlq_s32(raw, vdupq_n_s32(28 - 4 * step)), 28));
    }
    static MOE4_INLINE Weight load_x(const float* x) { return vld1q_f32(x); }
    static MOE4_INLINE Acc dot(Acc sum, Weight w, Weight x) { return vfmaq_f32(sum, w, x); }
    static MOE4_INLINE Acc multiply_add(Acc a, Acc b, Acc c) { return vfmaq_f32(c, a, b); }
    template <int G>
    static MOE4_INLINE Acc scales(const uint16_t* scale) {
        return vdupq_n_f32(bf16_to_float(scale[0]));
    }
    template <int G>
    static MOE4_INLINE Acc scales_first(const uint16_t*, int) { __builtin_unreachable(); }
    static MOE4_INLINE float sum(Acc a) { return vaddvq_f32(a); }
};

}  // namespace

const Path kNeonPath = {"neon", sizeof(float), arrange_floats<Ops>, multiply<Ops>};

}  // namespace moe4
