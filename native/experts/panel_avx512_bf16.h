// What AVX512-BF16 code has in common, whatever its weights are stored as: a *panel* of decoded weights, some rows of
// one chunk of columns, times some tokens; four rows and six tokens at a time, so that the multipliers are the limit.
//
// Order of summation of each element: a chunk of 1024 columns step by step (32 columns), in the sixteen lanes of a
// vector, from zero; then the lanes (add_lanes), then chunk by chunk.
//
// As in tile.h, everything is in an anonymous namespace and nothing of the C++ library is used.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace moe4 {
namespace {

#define MOE4_INLINE inline __attribute__((always_inline))

using Floats = __m512;
using Weights = __m512i;  // 32 in bf16

constexpr int kChunkSteps = 32;  // products of a chunk
constexpr int kPartTokens = 6;   // tokens multiplied at once by rows of a panel,
constexpr int kPartRows = 4;     // and rows: 24 of 32 registers hold sums
constexpr int kPanelRows = 64;   // rows of a panel at most: 128 KiB

MOE4_INLINE __m512i round_to_bf16(Floats low, Floats high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// The sum of the lanes of each of four vectors.
MOE4_INLINE __m128 add_lanes(Floats a, Floats b, Floats c, Floats d) {
    const Floats ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const Floats cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const Floats abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// A chunk's sums of four rows, to those of the chunks before.
MOE4_INLINE void add_chunk(__m128 sums, bool first, float* y) {
    _mm_storeu_ps(y, first ? sums : _mm_add_ps(_mm_loadu_ps(y), sums));
}

// One chunk of a panel and some tokens, and what to ask for while they are multiplied: the elements of the tokens that
// come next, then the weights of the next panel.
struct Part {
    const Weights* panel;
    int64_t rows, steps;
    const void* const* x;
    int64_t column;  // in bytes
    bool first;      // chunk of the row
    float* y;
    int64_t y_stride;
    const void* const* next_x;
    int64_t next_tokens, next_column;
    const char* next_weights;  // of as many rows, row_bytes apart: the first 512 bytes of all, the next 512, ...
    int64_t row_bytes, requests, request;  // four rows' 512 bytes each; how many, and the next
};

// y (+)= the panel's rows times T tokens' elements; four rows at a time.
template <int T>
void multiply_part(Part& part) {
    const char* x[T];
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) x[t] = static_cast<const char*>(part.x[t]) + part.column;
    const Weights* panel = part.panel;
    for (int64_t row = 0; row < part.rows; row += kPartRows) {
        const char* ahead = part.next_weights;  // of 32 lines, eight by eight
        int64_t ahead_stride = 0;
        if (row / kPartRows < part.next_tokens) {
            ahead = static_cast<const char*>(part.next_x[row / kPartRows]) + part.next_column;
            ahead_stride = 512;
        } else if (part.request < part.requests) {
            const int64_t blocks = part.rows / kPartRows;
            ahead += part.request % blocks * kPartRows * part.row_bytes + part.request / blocks * 512;
            ahead_stride = part.row_bytes;
            ++part.request;
        }
        Floats sum[T][kPartRows];
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
            for (int r = 0; r < kPartRows; ++r) sum[t][r] = _mm512_setzero_ps();
        for (int64_t step = 0; step < part.steps; ++step) {
            _mm_prefetch(ahead + step / 8 * ahead_stride + step % 8 * 64, _MM_HINT_T1);
            Weights weights[kPartRows];
#pragma GCC unroll 4
            for (int r = 0; r < kPartRows; ++r) weights[r] = panel[step * kPartRows + r];
#pragma GCC unroll 6
            for (int t = 0; t < T; ++t) {
                const __m512bh v = (__m512bh)_mm512_loadu_si512(x[t] + step * 64);
#pragma GCC unroll 4
                for (int r = 0; r < kPartRows; ++r) sum[t][r] = _mm512_dpbf16_ps(sum[t][r], (__m512bh)weights[r], v);
            }
        }
        panel += kChunkSteps * kPartRows;
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t)
            add_chunk(add_lanes(sum[t][0], sum[t][1], sum[t][2], sum[t][3]), part.first,
                      part.y + t * part.y_stride + row);
    }
}

using MultiplyPart = void (*)(Part&);

constexpr MultiplyPart kMultiplyPart[kPartTokens + 1] = {
    nullptr,          multiply_part<1>, multiply_part<2>, multiply_part<3>,
    multiply_part<4>, multiply_part<5>, multiply_part<6>};

// Multiply a panel's chunk by all tokens, in parts as equal as can be: six and one would take longer than four and
// three. `part` has all but its tokens; `next_column` is where the next panel's chunk begins in a token's elements.
MOE4_INLINE void multiply_parts(Part& part, const void* const* x, int64_t tokens, float* y, int64_t next_column) {
    const int64_t parts = (tokens + kPartTokens - 1) / kPartTokens;
    for (int64_t i = 0; i < parts; ++i) {
        const int64_t begin = i * tokens / parts, stop = (i + 1) * tokens / parts;
        const bool last = stop == tokens;
        part.x = x + begin;
        part.y = y + begin * part.y_stride;
        part.next_x = last ? x : x + stop;
        part.next_tokens = last ? tokens / parts : (i + 2) * tokens / parts - stop;
        part.next_column = last ? next_column : part.column;
        kMultiplyPart[stop - begin](part);
    }
}

}  // namespace
}  // namespace moe4
