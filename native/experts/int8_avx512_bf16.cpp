// Some rows of int8 weights times some tokens. An integer of eight bits is exact in bf16, so the weights' scale is the
// one thing rounded; it multiplies a row's sum. Few tokens and many as in path_avx512_bf16.cpp, with the same order of
// summation for both (panel_avx512_bf16.h); elements of a token are taken as they lie.
#include "int8_linear.h"
#include "panel_avx512_bf16.h"

namespace moe4 {
namespace {

constexpr int kFewTokens = 12;  // at most these are multiplied while decoding, up to six at once

MOE4_INLINE Weights decode(const int8_t* codes) {
    const __m128i* half = reinterpret_cast<const __m128i*>(codes);
    return round_to_bf16(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(half))),
                         _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(half + 1))));
}

// R rows times T tokens. While the rows are decoded, those that follow are asked for, in the order in which they lie in
// memory.
template <int R, int T>
void multiply_rows(const Int8Tile& tile, int64_t row, int64_t token, const char* ahead) {
    const int8_t* codes = tile.codes + row * tile.columns;
    const uint16_t* x[T];
    for (int t = 0; t < T; ++t) x[t] = static_cast<const uint16_t*>(tile.x[token + t]);
    const int64_t steps = tile.columns / 32;
    for (int64_t chunk = 0; chunk < steps; chunk += kChunkSteps) {
        const int64_t end = chunk + kChunkSteps < steps ? chunk + kChunkSteps : steps;
        Floats sum[T][R];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sum[t][r] = _mm512_setzero_ps();
        for (int64_t step = chunk; step < end; ++step) {
#pragma GCC unroll 4
            for (int r = 0; r < R; r += 2) {  // two rows for every element that is loaded
                _mm_prefetch(ahead + (step * R + r) * 32, _MM_HINT_T1);
                Weights weights[2];
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i) weights[i] = decode(codes + (r + i) * tile.columns + step * 32);
#pragma GCC unroll 8
                for (int t = 0; t < T; ++t) {
                    const __m512bh v = (__m512bh)_mm512_loadu_si512(x[t] + step * 32);
#pragma GCC unroll 2
                    for (int i = 0; i < 2; ++i)
                        sum[t][r + i] = _mm512_dpbf16_ps(sum[t][r + i], (__m512bh)weights[i], v);
                }
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 2
            for (int r = 0; r < R; r += 4)
                add_chunk(add_lanes(sum[t][r], sum[t][r + 1], sum[t][r + 2], sum[t][r + 3]), chunk == 0,
                          tile.sums + (token + t) * kInt8Rows + row + r);
    }
}

using MultiplyRows = void (*)(const Int8Tile&, int64_t row, int64_t token, const char* ahead);

constexpr MultiplyRows kMultiplyRows[kPartTokens + 1] = {
    nullptr,             multiply_rows<4, 1>, multiply_rows<4, 2>, multiply_rows<4, 3>,
    multiply_rows<4, 4>, multiply_rows<4, 5>, multiply_rows<4, 6>};

// With more than six tokens in two parts: rows are decoded twice, but read from memory once.
void multiply_few(const Int8Tile& tile) {
    const int64_t tokens = tile.tokens, first = tokens <= kPartTokens ? tokens : (tokens + 1) / 2;
    const MultiplyRows eight = tokens == 1 ? multiply_rows<8, 1> : tokens == 2 ? multiply_rows<8, 2> : nullptr;
    for (int64_t row = 0, rows; row < tile.rows; row += rows) {
        rows = eight && row + 8 <= tile.rows ? 8 : 4;
        const char* after = row + rows < tile.rows
                                ? reinterpret_cast<const char*>(tile.codes + (row + rows) * tile.columns)
                                : tile.next;
        (rows == 8 ? eight : kMultiplyRows[first])(tile, row, 0, after);
        if (tokens > first) kMultiplyRows[tokens - first](tile, row, first, after);
    }
}

void multiply_many(const Int8Tile& tile) {
    alignas(64) Weights panel[kPanelRows / kPartRows][kChunkSteps * kPartRows];
    const int64_t steps = tile.columns / 32;
    for (int64_t chunk = 0; chunk < steps; chunk += kChunkSteps) {
        const int64_t end = chunk + kChunkSteps < steps ? chunk + kChunkSteps : steps;
        for (int64_t row = 0; row < tile.rows; ++row) {
            const int8_t* codes = tile.codes + row * tile.columns;
            for (int64_t step = chunk; step < end; ++step)
                panel[row / kPartRows][(step - chunk) * kPartRows + row % kPartRows] = decode(codes + step * 32);
        }
        Part part{};
        part.panel = panel[0];
        part.rows = tile.rows;
        part.steps = end - chunk;
        part.column = chunk * 64;
        part.first = chunk == 0;
        part.y_stride = kInt8Rows;
        part.row_bytes = tile.columns;
        part.requests = tile.rows / kPartRows * (kChunkSteps * 32 / 512);
        part.next_weights = end < steps ? reinterpret_cast<const char*>(tile.codes) + end * 32 : tile.next;
        multiply_parts(part, tile.x, tile.tokens, tile.sums, end < steps ? end * 64 : 0);
    }
}

// The sums times the rows' scales, in bf16.
void write_out(const Int8Tile& tile) {
    for (int64_t row = 0; row < tile.rows; row += 16) {
        const int64_t left = tile.rows - row;
        const __mmask16 mask = static_cast<__mmask16>(left < 16 ? (1u << left) - 1 : 0xffffu);
        const __m256i bits = _mm256_maskz_loadu_epi16(mask, tile.scales + row);
        const Floats scale = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
        for (int64_t t = 0; t < tile.tokens; ++t) {
            const Floats y = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, tile.sums + t * kInt8Rows + row), scale);
            _mm256_mask_storeu_epi16(tile.out + t * tile.out_stride + row, mask, (__m256i)_mm512_cvtneps_pbh(y));
        }
    }
}

}  // namespace

void multiply_int8_avx512_bf16(const Int8Tile& tile) {
    static_assert(kFewTokens <= 2 * kPartTokens, "two parts");
    if (!tile.tokens) return;
    if (tile.tokens <= kFewTokens) multiply_few(tile);
    else multiply_many(tile);
    write_out(tile);
}

}  // namespace moe4
