// Blocks of 8 rows by 48 columns in 24 registers: a step loads three vectors of one panel and multiplies each by eight
// words of the other.
#include <immintrin.h>

#include <cstring>

#include "gram.h"

namespace moe4 {
namespace {

constexpr int kRows = 8;
constexpr int kVectors = kPanelColumns / 16;
// Of both panels 24 KiB, which stay in cache. And the instruction's own sums lose a little each time: few are made
// before they are added to the others.
constexpr int64_t kPairsAtOnce = 128;

inline __attribute__((always_inline)) __m512bh as_bf16(__m512i words) { return (__m512bh)words; }

void add_strip(const uint32_t* left, const uint32_t* right, int64_t num_pairs, float* sums) {
    __m512 sum[kRows][kVectors];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) sum[row][v] = _mm512_setzero_ps();
    for (int64_t t = 0; t < num_pairs; ++t) {
        __m512bh columns[kVectors];
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) columns[v] = as_bf16(_mm512_loadu_si512(right + t * kPanelColumns + 16 * v));
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
            const __m512bh value = as_bf16(_mm512_set1_epi32(static_cast<int>(left[t * kPanelColumns + row])));
#pragma GCC unroll 3
            for (int v = 0; v < kVectors; ++v) sum[row][v] = _mm512_dpbf16_ps(sum[row][v], value, columns[v]);
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) {
            float* to = sums + row * kPanelColumns + 16 * v;
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sum[row][v]));
        }
}

}  // namespace

void add_gram_block(const Gram& gram, int64_t left, int64_t right) {
    alignas(64) float sums[kPanelColumns * kPanelColumns];
    std::memset(sums, 0, sizeof sums);
    const uint32_t* rows = gram.panels + left * gram.num_pairs * kPanelColumns;
    const uint32_t* columns = gram.panels + right * gram.num_pairs * kPanelColumns;
    for (int64_t t = 0; t < gram.num_pairs; t += kPairsAtOnce) {
        const int64_t count = gram.num_pairs - t < kPairsAtOnce ? gram.num_pairs - t : kPairsAtOnce;
        for (int64_t row = 0; row < kPanelColumns; row += kRows)
            add_strip(rows + t * kPanelColumns + row, columns + t * kPanelColumns, count, sums + row * kPanelColumns);
    }
    const int64_t first_row = left * kPanelColumns, first_column = right * kPanelColumns;
    for (int64_t row = 0; row < kPanelColumns && first_row + row < gram.size; ++row) {
        float* to = gram.total + (first_row + row) * gram.size + first_column;
        for (int64_t column = 0; column < kPanelColumns && first_column + column < gram.size; ++column)
            to[column] += sums[row * kPanelColumns + column];
    }
}

}  // namespace moe4
