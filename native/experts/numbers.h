// Rows of floats to and from the dtypes of a call, and the activation between the two products. For files that are
// compiled for any machine of their architecture.
#pragma once

#include <cstdint>
#include <cstring>

#include "experts.h"

namespace moe4 {

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | rest << 13);           // Inf, NaN
    if (rest >= 0x0400) return bits_to_float(sign | ((rest << 13) + (112u << 23)));     // normal
    return bits_to_float(sign | float_to_bits(static_cast<float>(rest) * 0x1p-24f));    // subnormal, zero
}

inline uint16_t float_to_half(float value) {
    const uint32_t bits = float_to_bits(value), magnitude = bits & 0x7fffffff;
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return sign | 0x7e00;   // NaN
    if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds to Inf: 65520 and above
    if (magnitude < 0x38800000) {
        // Subnormal in half: adding 0.5 leaves the value in units of 2^-24 in the low bits, rounded to even.
        return sign | static_cast<uint16_t>(float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000);
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return sign | static_cast<uint16_t>((rounded - (112u << 23)) >> 13);
}

inline uint16_t float_to_bf16(float value) {
    const uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void read_row(Dtype dtype, const void* src, int64_t first, int64_t count, float* dst) {
    if (dtype == Dtype::kF32) {
        std::memcpy(dst, static_cast<const float*>(src) + first, count * sizeof(float));
        return;
    }
    const uint16_t* half = static_cast<const uint16_t*>(src) + first;
    if (dtype == Dtype::kBf16) {
        for (int64_t i = 0; i < count; ++i) dst[i] = bits_to_float(static_cast<uint32_t>(half[i]) << 16);
    } else {
        for (int64_t i = 0; i < count; ++i) dst[i] = half_to_float(half[i]);
    }
}

inline void write_row(Dtype dtype, const float* src, int64_t first, int64_t count, void* dst) {
    if (dtype == Dtype::kF32) {
        std::memcpy(static_cast<float*>(dst) + first, src, count * sizeof(float));
        return;
    }
    uint16_t* half = static_cast<uint16_t*>(dst) + first;
    if (dtype == Dtype::kBf16) {
        for (int64_t i = 0; i < count; ++i) half[i] = float_to_bf16(src[i]);
    } else {
        for (int64_t i = 0; i < count; ++i) half[i] = float_to_half(src[i]);
    }
}

// exp(x), within 2 units of its last place; written so that the compiler makes vectors of it.
inline float exponential(float x) {
    const float shifter = 0x1.8p23f;  // adding it rounds to an integer, which is then in the low bits
    // Beyond these the result is zero or infinite. A NaN stays one.
    const float limited = x > 89.0f ? 89.0f : x < -88.0f ? -88.0f : x;
    const float shifted = limited * 0x1.715476p+0f + shifter, n = shifted - shifter;
    const float r = limited - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;  // ln 2 in two parts, the first exact times n
    // Taylor's series: |r| <= 0.35, so the first term left out is below 2^-26.
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * bits_to_float((float_to_bits(shifted) + 127) << 23);  // 2^n; infinity for 128
}

// gate = silu(gate) * up.
inline void activate(float* __restrict gate, const float* __restrict up, int64_t count) {
    for (int64_t i = 0; i < count; ++i) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

}  // namespace moe4
