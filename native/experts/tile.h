// The kernel's loops, shared by all paths. A path gives an `Ops` with its vectors; see path_portable.cpp for the
// plainest one.
//
// Everything here is in an anonymous namespace, and neither this file nor the paths use the C++ standard library's
// templates: a function the linker could merge across translation units might be kept in a version compiled for
// instructions the machine lacks.
//
// Words. A *line* is Ops::kLanes words of a packed row, one per lane: 8 * kLanes codes. It is decoded in Ops::kSteps
// steps, each giving one vector of weights. An *arranged* row of activations has its elements in the order in which
// those steps meet them. A lane's eight codes lie in one group, so a vector with one scale per lane multiplies a
// line's sum, whatever the group size.
//
// Order of summation, the same for every token whatever is computed beside it: per line and lane, over the steps from
// zero; then total = total + scale * line's sum, line by line; then over the lanes.
#pragma once

#include "path.h"

namespace moe4 {
namespace {

#define MOE4_INLINE inline __attribute__((always_inline))
#define MOE4_LAMBDA_INLINE __attribute__((always_inline))

template <class Ops, int G, int R, int T>
struct Block {
    typename Ops::Acc total[R][T];

    MOE4_INLINE void add_line(const typename Ops::Raw (&raw)[R], const typename Ops::Acc (&scale)[R],
                              const typename Ops::Elem* const (&x)[T], int64_t offset) {
        typename Ops::Acc part[R][T];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) part[r][t] = Ops::zero();
#pragma GCC unroll 8
        for (int step = 0; step < Ops::kSteps; ++step) {
            typename Ops::Weight w[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) w[r] = Ops::decode(raw[r], step);
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) {
                const typename Ops::Weight v = Ops::load_x(x[t] + offset + step * Ops::kStepElems);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) part[r][t] = Ops::dot(part[r][t], w[r], v);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) total[r][t] = Ops::multiply_add(part[r][t], scale[r], total[r][t]);
    }
};

// Ask for the rows this far ahead: the processor's own prefetcher stops at every 4 KiB page, and rows are shorter.
constexpr int64_t kPrefetchWords = 8192 / sizeof(uint32_t);

// Rows row..row+R of the tile times tokens token..token+T.
template <class Ops, int G, int R, int T>
inline void multiply_block(const Tile& tile, int64_t row, int64_t token) {
    constexpr int64_t line_codes = 8 * Ops::kLanes;
    const uint32_t* packed[R];
    const uint16_t* scale[R];
    const typename Ops::Elem* x[T];
    for (int r = 0; r < R; ++r) {
        packed[r] = tile.packed + (row + r) * tile.packed_stride;
        scale[r] = tile.scale + (row + r) * tile.scale_stride;
    }
    for (int t = 0; t < T; ++t) x[t] = static_cast<const typename Ops::Elem*>(tile.x[token + t]);

    Block<Ops, G, R, T> block;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) block.total[r][t] = Ops::zero();

    typename Ops::Raw raw[R];
    typename Ops::Acc factor[R];
    const int64_t block_words = R * tile.packed_stride;
    const int64_t ahead = (kPrefetchWords + block_words - 1) / block_words * block_words;
    const int64_t num_lines = tile.num_words / Ops::kLanes;
    for (int64_t line = 0; line < num_lines; ++line) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            __builtin_prefetch(packed[r] + line * Ops::kLanes + ahead);  // no fault where nothing is mapped
            raw[r] = Ops::load(packed[r] + line * Ops::kLanes);
            factor[r] = Ops::template scales<G>(scale[r] + line * line_codes / G);
        }
        block.add_line(raw, factor, x, line * line_codes);
    }
    const int num_left = static_cast<int>(tile.num_words - num_lines * Ops::kLanes);
    if (num_left) {
        // The lanes past the end decode to -8 and meet zeros in x and in the scales.
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            raw[r] = Ops::load_first(packed[r] + num_lines * Ops::kLanes, num_left);
            factor[r] = Ops::template scales_first<G>(scale[r] + num_lines * line_codes / G, num_left);
        }
        block.add_line(raw, factor, x, num_lines * line_codes);
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) tile.y[(token + t) * tile.y_stride + row + r] = Ops::sum(block.total[r][t]);
}

template <class Ops, int G, int R, int T>
inline void multiply_rows(const Tile& tile, int64_t token) {
    int64_t row = 0;
    for (; row + R <= tile.num_rows; row += R) multiply_block<Ops, G, R, T>(tile, row, token);
    for (; row < tile.num_rows; ++row) multiply_block<Ops, G, 1, T>(tile, row, token);
}

// Take T tokens at a time while there are as many, then the rest with fewer.
template <class Ops, int G, int T>
inline void multiply_tokens(const Tile& tile, int64_t token) {
    // A single token is bound by memory, and one row after the other is one stream, which memory serves fastest.
    constexpr int R = T == 1 ? 1 : Ops::kRows;
    for (; token + T <= tile.num_tokens; token += T) multiply_rows<Ops, G, R, T>(tile, token);
    if constexpr (T > 1) {
        if (token < tile.num_tokens) multiply_tokens<Ops, G, T - 1>(tile, token);
    }
}

template <class Ops>
void multiply(const Tile& tile) {
    if (tile.group_size == 128) multiply_tokens<Ops, 128, Ops::kTokens>(tile, 0);
    if (tile.group_size == 64) multiply_tokens<Ops, 64, Ops::kTokens>(tile, 0);
    if (tile.group_size == 32) multiply_tokens<Ops, 32, Ops::kTokens>(tile, 0);
}

// For paths that multiply in float: step j of a line meets code j of each lane's word.
template <class Ops>
void arrange_floats(const float* src, int64_t first, int64_t count, void* row) {
    constexpr int64_t line_codes = 8 * Ops::kLanes;
    float* dst = static_cast<float*>(row);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t column = first + i, line = column / line_codes, place = column % line_codes;
        dst[line * line_codes + (place % 8) * Ops::kLanes + place / 8] = src[i];
    }
}

inline float bf16_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    __builtin_memcpy(&value, &wide, sizeof value);
    return value;
}

inline uint16_t float_to_bf16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // NaN stays NaN
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);                 // ties to even
}

}  // namespace
}  // namespace moe4
