// NEON with BF16 (Neoverse V1, N2 and later): `bfdot` adds eight products to four sums. A line is sixteen bytes. Its
// low and its high nibbles are looked up in two tables, of the upper and of the lower byte of -8..7 in bf16, which are
// then interleaved.
#include <arm_neon.h>

#include "tile.h"

namespace moe4 {
namespace {

struct Ops {
    using Elem = uint16_t;
    using Acc = float32x4_t;
    using Raw = uint8x16_t;
    using Weight = bfloat16x8_t;
    static constexpr int kLanes = 4, kSteps = 4, kStepElems = 8;
    static constexpr int kRows = 2, kTokens = 4;  // 8 totals, 8 line sums, 2 + 1 operands, 2 tables of 32 registers

    static MOE4_INLINE Acc zero() { return vdupq_n_f32(0); }
    static MOE4_INLINE Raw load(const uint32_t* words) { return vreinterpretq_u8_u32(vld1q_u32(words)); }
    // A line is 32 codes, the smallest group: no row ends within one.
    static MOE4_INLINE Raw load_first(const uint32_t*, int) { __builtin_unreachable(); }
    // Steps 0 and 1: the even codes; 2 and 3: the odd ones.
    static MOE4_INLINE Weight decode(Raw raw, int step) {
        const uint8x16_t upper = {0xc1, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xbf,
                                  0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40};
        const uint8x16_t lower = {0x00, 0xe0, 0xc0, 0xa0, 0x80, 0x40, 0x00, 0x80,
                                  0x00, 0x80, 0x00, 0x40, 0x80, 0xa0, 0xc0, 0xe0};
        const uint8x16_t code = step < 2 ? vandq_u8(raw, vdupq_n_u8(15)) : vshrq_n_u8(raw, 4);
        const uint8x16_t high = vqtbl1q_u8(upper, code), low = vqtbl1q_u8(lower, code);
        return vreinterpretq_bf16_u8(step % 2 ? vzip2q_u8(low, high) : vzip1q_u8(low, high));
    }
    static MOE4_INLINE Weight load_x(const uint16_t* x) { return vreinterpretq_bf16_u16(vld1q_u16(x)); }
    static MOE4_INLINE Acc dot(Acc sum, Weight w, Weight x) { return vbfdotq_f32(sum, w, x); }
    static MOE4_INLINE Acc multiply_add(Acc a, Acc b, Acc c) { return vfmaq_f32(c, a, b); }
    template <int G>
    static MOE4_INLINE Acc scales(const uint16_t* scale) {
        return vdupq_n_f32(bf16_to_float(scale[0]));
    }
    template <int G>
    static MOE4_INLINE Acc scales_first(const uint16_t*, int) { __builtin_unreachable(); }
    static MOE4_INLINE float sum(Acc a) { return vaddvq_f32(a); }
};

// The even codes of a line, then the odd ones.
void arrange(const float* src, int64_t first, int64_t count, void* row) {
    uint16_t* dst = static_cast<uint16_t*>(row);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t column = first + i, line = column / 32, place = column % 32;
        dst[line * 32 + place % 2 * 16 + place / 2] = float_to_bf16(src[i]);
    }
}

}  // namespace

const Path kNeonBf16Path = {"neon_bf16", sizeof(uint16_t), arrange, multiply<Ops>};

}  // namespace moe4
