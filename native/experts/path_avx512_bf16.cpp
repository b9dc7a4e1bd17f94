// AVX512-BF16. Weights are what a decoded checkpoint holds, scale * code rounded to bf16, and a product is one
// `vdpbf16ps` of 32 of them with 32 elements of a token. Two ways do this, with the same sums in the same order:
//
//   few tokens:  decode a line into registers and multiply at once, rows in the order in which they lie. Memory is the
//                limit.
//   many tokens: decode a *panel*, some rows of one chunk of columns, into the second cache; multiply it by the tokens
//                (panel_avx512_bf16.h, which says in which order is summed).
//
// A line is 64 bytes, 128 codes, four steps: lane l of step s holds codes s and s + 4 of word l.
//
// As in tile.h, everything is in an anonymous namespace and nothing of the C++ library is used.
#include <immintrin.h>

#include "panel_avx512_bf16.h"
#include "path.h"

namespace moe4 {
namespace {

constexpr int kSteps = 4;                          // products of a line
constexpr int kChunkLines = kChunkSteps / kSteps;  // lines of a chunk
constexpr int kFewTokens = 6;                      // at most these are multiplied while decoding

// --- decoding -------------------------------------------------------------------------------------------------------

// The sixteen values of each of a line's G groups, in bf16.
template <int G>
struct Table {
    __m512i values[G == 4 ? 2 : 1];
};

template <int G>
MOE4_INLINE Table<G> make_table(const float* scale) {
    const Floats codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    Floats values[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) values[g] = _mm512_mul_ps(codes, _mm512_set1_ps(scale[g]));
    Table<G> table;
    table.values[0] = round_to_bf16(values[0], values[G > 1 ? 1 : 0]);
    if constexpr (G == 4) table.values[1] = round_to_bf16(values[2], values[3]);
    return table;
}

// Codes s and s + 4 of each word. A permutation reads five bits of each index (six from two tables), of which the
// fifth belongs to the next code. With one group, both halves of the table are alike; with more, the group goes there.
template <int G>
MOE4_INLINE Weights decode(__m512i words, int step, const Table<G>& table) {
    __m512i index = step ? _mm512_srli_epi16(words, 4 * step) : words;
    if constexpr (G > 1) {
        const int64_t one = 0x0010001000100010;
        const __m512i group = G == 2 ? _mm512_setr_epi64(0, 0, 0, 0, one, one, one, one)
                                     : _mm512_setr_epi64(0, 0, one, one, 2 * one, 2 * one, 3 * one, 3 * one);
        index = _mm512_ternarylogic_epi32(index, _mm512_set1_epi16(15), group, 0xea);  // (index & 15) | group
    }
    if constexpr (G == 4) return _mm512_permutex2var_epi16(table.values[0], index, table.values[1]);
    return _mm512_permutexvar_epi16(index, table.values[0]);
}

// `count` scales, of whole or partial lines of a chunk, in float; beyond them zeros, as x is zero there.
template <int G>
MOE4_INLINE void load_scales(const uint16_t* scale, int count, float* out) {
#pragma GCC unroll 4
    for (int i = 0; i < G * kChunkLines; i += 8) {
        const int left = count - i < 0 ? 0 : count - i < 8 ? count - i : 8;
        const __m128i half = _mm_maskz_loadu_epi16(static_cast<__mmask8>((1u << left) - 1), scale + i);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
}

struct Shape {
    int64_t row_bytes, lines;  // lines of a row, the last of which may be partial
    __mmask16 last_words;      // those of the last line
    int groups;                // scales of a row

    MOE4_INLINE explicit Shape(const Tile& tile)
        : row_bytes(tile.packed_stride * 4),
          lines((tile.num_words + 15) / 16),
          last_words(static_cast<__mmask16>(0xffffu >> (lines * 16 - tile.num_words))),
          groups(static_cast<int>(tile.num_words * 8 / tile.group_size)) {}
    MOE4_INLINE __mmask16 words(int64_t line) const {
        return line + 1 == lines ? last_words : static_cast<__mmask16>(0xffff);
    }
};

// --- few tokens -----------------------------------------------------------------------------------------------------

// While R rows are decoded, the next R are asked for, line by line in the order in which they lie in memory, into the
// second cache. Rows that have gaps are asked for in the order in which they will be decoded.
template <int G, int R, int T>
void multiply_few(const Tile& tile) {
    const Shape shape(tile);
    const bool gaps = tile.packed_stride != tile.num_words;
    const int64_t ahead_row = gaps ? shape.row_bytes : 64, ahead_line = gaps ? 64 : 64 * R;
    const uint16_t* x[T];
    for (int t = 0; t < T; ++t) x[t] = static_cast<const uint16_t*>(tile.x[t]);
    for (int64_t row = 0; row < tile.num_rows; row += R) {
        const char* rows = reinterpret_cast<const char*>(tile.packed) + row * shape.row_bytes;
        const char* ahead = row + R < tile.num_rows ? rows + R * shape.row_bytes : tile.next;
        const uint16_t* scales = tile.scale + row * tile.scale_stride;
        for (int64_t chunk = 0; chunk < shape.lines; chunk += kChunkLines) {
            const int64_t end = chunk + kChunkLines < shape.lines ? chunk + kChunkLines : shape.lines;
            float scale[R][G * kChunkLines];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                load_scales<G>(scales + r * tile.scale_stride + chunk * G, shape.groups - static_cast<int>(chunk) * G,
                               scale[r]);
            Floats sum[T][R];
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) sum[t][r] = _mm512_setzero_ps();
            for (int64_t line = chunk; line < end; ++line) {
                const __mmask16 present = shape.words(line);
#pragma GCC unroll 4
                for (int r = 0; r < R; r += 2) {  // two rows for every element that is loaded
                    __m512i words[2];
                    Table<G> table[2];
#pragma GCC unroll 2
                    for (int i = 0; i < 2; ++i) {
                        _mm_prefetch(ahead + line * ahead_line + (r + i) * ahead_row, _MM_HINT_T1);
                        words[i] = _mm512_maskz_loadu_epi32(present, rows + (r + i) * shape.row_bytes + line * 64);
                        table[i] = make_table<G>(&scale[r + i][(line - chunk) * G]);
                    }
#pragma GCC unroll 4
                    for (int step = 0; step < kSteps; ++step) {
                        Weights weights[2];
#pragma GCC unroll 2
                        for (int i = 0; i < 2; ++i) weights[i] = decode<G>(words[i], step, table[i]);
#pragma GCC unroll 8
                        for (int t = 0; t < T; ++t) {
                            const __m512bh v = (__m512bh)_mm512_loadu_si512(x[t] + line * kLineCodes + step * 32);
#pragma GCC unroll 2
                            for (int i = 0; i < 2; ++i)
                                sum[t][r + i] = _mm512_dpbf16_ps(sum[t][r + i], (__m512bh)weights[i], v);
                        }
                    }
                }
            }
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t)
#pragma GCC unroll 2
                for (int r = 0; r < R; r += 4)
                    add_chunk(add_lanes(sum[t][r], sum[t][r + 1], sum[t][r + 2], sum[t][r + 3]), chunk == 0,
                              tile.y + t * tile.y_stride + row + r);
        }
    }
}

// --- many tokens ----------------------------------------------------------------------------------------------------

// Four rows of a chunk, step by step.
template <int G>
MOE4_INLINE void decode_rows(const Tile& tile, const Shape& shape, int64_t row, int64_t chunk, int64_t end,
                             Weights* panel) {
    const char* rows = reinterpret_cast<const char*>(tile.packed) + row * shape.row_bytes;
    for (int r = 0; r < kPartRows; ++r) {
        float scale[G * kChunkLines];
        load_scales<G>(tile.scale + (row + r) * tile.scale_stride + chunk * G,
                       shape.groups - static_cast<int>(chunk) * G, scale);
        for (int64_t line = chunk; line < end; ++line) {
            const __m512i words = _mm512_maskz_loadu_epi32(shape.words(line), rows + r * shape.row_bytes + line * 64);
            const Table<G> table = make_table<G>(scale + (line - chunk) * G);
#pragma GCC unroll 4
            for (int step = 0; step < kSteps; ++step)
                panel[((line - chunk) * kSteps + step) * kPartRows + r] = decode<G>(words, step, table);
        }
    }
}

template <int G>
void multiply_many(const Tile& tile) {
    const Shape shape(tile);
    alignas(64) Weights panel[kPanelRows / kPartRows][kChunkSteps * kPartRows];
    for (int64_t first_row = 0; first_row < tile.num_rows; first_row += kPanelRows) {
        const int64_t rows = tile.num_rows - first_row < kPanelRows ? tile.num_rows - first_row : kPanelRows;
        for (int64_t chunk = 0; chunk < shape.lines; chunk += kChunkLines) {
            const int64_t end = chunk + kChunkLines < shape.lines ? chunk + kChunkLines : shape.lines;
            for (int64_t r = 0; r < rows; r += kPartRows)
                decode_rows<G>(tile, shape, first_row + r, chunk, end, panel[r / kPartRows]);
            Part part{};
            part.panel = panel[0];
            part.rows = rows;
            part.steps = (end - chunk) * kSteps;
            part.column = chunk * kLineCodes * 2;
            part.first = chunk == 0;
            part.y_stride = tile.y_stride;
            part.row_bytes = shape.row_bytes;
            part.requests = rows / kPartRows;
            const char* const weights = reinterpret_cast<const char*>(tile.packed);
            part.next_weights = end < shape.lines                  ? weights + first_row * shape.row_bytes + end * 64
                                : first_row + rows < tile.num_rows ? weights + (first_row + rows) * shape.row_bytes
                                                                   : tile.next;
            multiply_parts(part, tile.x, tile.num_tokens, tile.y + first_row,
                           end < shape.lines ? end * kLineCodes * 2 : 0);
        }
    }
}

template <int G>
void multiply_groups(const Tile& tile) {
    static_assert(kFewTokens == 6, "the cases");
    switch (tile.num_tokens) {
        case 0: return;
        case 1: return multiply_few<G, 8, 1>(tile);
        case 2: return multiply_few<G, 8, 2>(tile);
        case 3: return multiply_few<G, 4, 3>(tile);
        case 4: return multiply_few<G, 4, 4>(tile);
        case 5: return multiply_few<G, 4, 5>(tile);
        case 6: return multiply_few<G, 4, 6>(tile);
        default: return multiply_many<G>(tile);
    }
}

void multiply(const Tile& tile) {
    if (tile.group_size == 128) multiply_groups<1>(tile);
    if (tile.group_size == 64) multiply_groups<2>(tile);
    if (tile.group_size == 32) multiply_groups<4>(tile);
}

// Step by step, and in a step codes s and s + 4 of a word side by side. Columns come in groups, so by four words.
void arrange(const float* src, int64_t first, int64_t count, void* row) {
    alignas(64) uint16_t places[32];
    for (int i = 0; i < 32; ++i) places[i] = static_cast<uint16_t>(i % 8 / 2 * 8 + i / 8 + i % 2 * 4);
    const __m512i order = _mm512_load_si512(places);
    for (int64_t i = 0; i < count; i += 32) {
        const int64_t column = first + i;
        const __m512i bf16 = round_to_bf16(_mm512_loadu_ps(src + i), _mm512_loadu_ps(src + i + 16));
        const __m512i steps = _mm512_permutexvar_epi16(order, bf16);
        uint16_t* dst = static_cast<uint16_t*>(row) + column / kLineCodes * kLineCodes + column % kLineCodes / 4;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm512_castsi512_si128(steps));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + 32), _mm512_extracti32x4_epi32(steps, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + 64), _mm512_extracti32x4_epi32(steps, 2));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + 96), _mm512_extracti32x4_epi32(steps, 3));
    }
}

}  // namespace

const Path kAvx512Bf16Path = {"avx512_bf16", sizeof(uint16_t), arrange, multiply};

}  // namespace moe4
