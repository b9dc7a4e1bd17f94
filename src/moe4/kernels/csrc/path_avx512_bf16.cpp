// AVX512-BF16. Sixteen rows of a matrix are the sixteen lanes of a vector, so that a row's sum stays in its lane: a
// product of 32 pairs is one `vdpbf16ps` with one pair of a token's elements, broadcast, and the group's scales take
// part once a group. Two ways do this, with the same sums in the same order:
//
//   few tokens:  decode into registers, multiply at once. Memory is the limit.
//   many tokens: decode a *panel*, 32 rows of one group (8 KiB at most), into the first cache; multiply it by twelve
//                tokens at a time. The multipliers are the limit.
//
// Order of summation of each element, whatever is computed beside it: within a group word by word, in a word the pairs
// (0, 4), (1, 5), (2, 6), (3, 7), from zero; then total = scale * group's sum + total, group by group, from zero.
//
// As in tile.h, everything is in an anonymous namespace and nothing of the C++ library is used.
#include <immintrin.h>

#include "path.h"

namespace moe4 {
namespace {

#define MOE4_INLINE inline __attribute__((always_inline))

using Floats = __m512;   // a float of each of sixteen rows
using Weights = __m512i;  // a pair of bf16 of each of sixteen rows

constexpr int kLanes = 16;       // rows of a vector
constexpr int kPanelRows = 32;   // rows of a panel
constexpr int kUnitCodes = 32;   // codes of four words, the smallest group
constexpr int kPanelTokens = 12; // tokens multiplied at once by a panel: 24 of 32 registers hold sums
constexpr int64_t kChunkBytes = 384 << 10;  // of the tokens' elements used again and again: they stay in the second cache
static_assert(kChunkBytes >= kTileTokens * kLineCodes * 2, "a chunk has a line of every token at least");

struct Words {
    __m512i word[4];
};

// Four 32-bit words of each of sixteen rows: row r in lane r.
MOE4_INLINE Words transpose(const __m512i (&v)[4]) {
    const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    return {{_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
             _mm512_unpackhi_epi64(b, d)}};
}

// Sixteen bytes of memory to a quarter of a vector. Written out, because GCC loads them into a register first, and an
// insertion from a register takes one of the two units that the decoding needs.
template <int Quarter>
MOE4_INLINE __m512i insert(__m512i v, const char* bytes) {
    __asm__("vinserti32x4 %2, %1, %0, %0" : "+v"(v) : "m"(*reinterpret_cast<const __m128i_u*>(bytes)), "i"(Quarter));
    return v;
}

// The four words at `first` and at the same place of the next fifteen rows.
MOE4_INLINE Words load_words(const char* first, int64_t row_bytes) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const char* p = first + i * row_bytes;
        v[i] = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        v[i] = insert<1>(v[i], p + 4 * row_bytes);
        v[i] = insert<2>(v[i], p + 8 * row_bytes);
        v[i] = insert<3>(v[i], p + 12 * row_bytes);
    }
    return transpose(v);
}

// While a block of rows is decoded, the next one is asked for, line by line, into the second cache, in the order in
// which it lies in memory; and a few lines of the block itself into the first. Where rows have gaps, the former is left
// to the processor.
MOE4_INLINE const char* prefetched(const Tile& tile, const char* rows, int64_t next_row, int64_t num_rows) {
    if (tile.packed_stride != tile.num_words) return rows;
    return next_row < tile.num_rows ? rows + num_rows * tile.num_words * 4 : tile.next;
}

// The scales of `count` groups, at most eight, of sixteen rows.
MOE4_INLINE void load_scales(const uint16_t* first, int64_t row_groups, int count, Floats (&scale)[8]) {
    const __mmask8 mask = static_cast<__mmask8>((1u << count) - 1);
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const uint16_t* p = first + i * row_groups;
        v[i] = _mm512_castsi128_si512(_mm_maskz_loadu_epi16(mask, p));
        v[i] = _mm512_inserti32x4(v[i], _mm_maskz_loadu_epi16(mask, p + 4 * row_groups), 1);
        v[i] = _mm512_inserti32x4(v[i], _mm_maskz_loadu_epi16(mask, p + 8 * row_groups), 2);
        v[i] = _mm512_inserti32x4(v[i], _mm_maskz_loadu_epi16(mask, p + 12 * row_groups), 3);
    }
    const Words pairs = transpose(v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        scale[2 * i] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs.word[i], 16));
        scale[2 * i + 1] =
            _mm512_castsi512_ps(_mm512_and_si512(pairs.word[i], _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    }
}

// Codes `step` and `step + 4` of each lane's word.
MOE4_INLINE Weights decode(__m512i word, int step) {
    // -8..7 in bf16, twice: vpermw reads five bits of each index, and the fifth belongs to the next code.
    constexpr uint64_t a = 0xc0a0c0c0c0e0c100, b = 0xbf80c000c040c080, c = 0x404040003f800000, d = 0x40e040c040a04080;
    const __m512i table = _mm512_setr_epi64(a, b, c, d, a, b, c, d);
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(word, 4 * step), table);
}

MOE4_INLINE Floats dot(Floats sum, Weights w, __m512i x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
}

// The same pair of elements for all rows.
MOE4_INLINE __m512i load_pair(const uint16_t* x) {
    int pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    return _mm512_set1_epi32(pair);
}

// --- few tokens -----------------------------------------------------------------------------------------------------

// Q groups from `group`, of U units each, for sixteen rows and T tokens: add them to the totals. Several groups at a
// time, as each one's sum is a chain of dependent instructions.
template <int U, int T, int Q>
MOE4_INLINE void add_groups(const char* rows, int64_t row_bytes, const char* ahead, int64_t group,
                            const Floats* scale, const uint16_t* const (&x)[T], Floats (&total)[T]) {
    Floats part[Q][T];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) part[q][t] = _mm512_setzero_ps();
    for (int u = 0; u < U; ++u) {
        Words words[Q];
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
            const int64_t unit = (group + q) * U + u;
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const int line = (u * Q + q) * 4 + i;  // of those that hold the next Q groups of these rows
                _mm_prefetch(rows + line % kLanes * row_bytes + (group + Q) * U * 16 + line / kLanes * 64, _MM_HINT_T0);
                _mm_prefetch(ahead + unit * 256 + i * 64, _MM_HINT_T1);
            }
            words[q] = load_words(rows + unit * 16, row_bytes);
        }
#pragma GCC unroll 4
        for (int w = 0; w < 4; ++w)
#pragma GCC unroll 4
            for (int step = 0; step < 4; ++step)
#pragma GCC unroll 4
                for (int q = 0; q < Q; ++q) {
                    const Weights weights = decode(words[q].word[w], step);
                    const int64_t column = ((group + q) * U + u) * kUnitCodes + w * 8 + step * 2;
#pragma GCC unroll 8
                    for (int t = 0; t < T; ++t) part[q][t] = dot(part[q][t], weights, load_pair(x[t] + column));
                }
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) total[t] = _mm512_fmadd_ps(part[q][t], scale[q], total[t]);
}

template <int U, int T>
void multiply_few(const Tile& tile, int64_t token) {
    constexpr int Q = T <= 2 ? 4 : T <= 4 ? 2 : 1;
    const int64_t row_bytes = tile.packed_stride * 4, num_groups = tile.num_words / (4 * U);
    const uint16_t* x[T];
    for (int t = 0; t < T; ++t) x[t] = static_cast<const uint16_t*>(tile.x[token + t]);
    for (int64_t row = 0; row < tile.num_rows; row += kLanes) {
        const char* rows = reinterpret_cast<const char*>(tile.packed) + row * row_bytes;
        const uint16_t* scales = tile.scale + row * tile.scale_stride;
        const char* ahead = prefetched(tile, rows, row + kLanes, kLanes);
        Floats total[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) total[t] = _mm512_setzero_ps();
        for (int64_t first = 0; first < num_groups; first += 8) {
            const int count = static_cast<int>(num_groups - first < 8 ? num_groups - first : 8);
            Floats scale[8];
            load_scales(scales + first, tile.scale_stride, count, scale);
            int group = 0;
            for (; group + Q <= count; group += Q)
                add_groups<U, T, Q>(rows, row_bytes, ahead, first + group, scale + group, x, total);
            for (; group < count; ++group)
                add_groups<U, T, 1>(rows, row_bytes, ahead, first + group, scale + group, x, total);
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) _mm512_storeu_ps(tile.y + (token + t) * tile.y_stride + row, total[t]);
    }
}

// --- many tokens ----------------------------------------------------------------------------------------------------

// Decode one group of 32 rows: pair by pair, each a vector of rows 0..15 and one of rows 16..31.
template <int U>
MOE4_INLINE void decode_panel(const char* rows, int64_t row_bytes, const char* ahead, int64_t group, Weights* panel) {
    for (int u = 0; u < U; ++u) {
        const int64_t unit = group * U + u;
#pragma GCC unroll 8
        for (int line = 0; line < 8; ++line) _mm_prefetch(ahead + unit * 512 + line * 64, _MM_HINT_T1);
        for (int row = u * kPanelRows / U; row < (u + 1) * kPanelRows / U; ++row)
            _mm_prefetch(rows + row * row_bytes + (group + 1) * U * 16, _MM_HINT_T0);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const Words words = load_words(rows + half * kLanes * row_bytes + unit * 16, row_bytes);
#pragma GCC unroll 4
            for (int w = 0; w < 4; ++w)
#pragma GCC unroll 4
                for (int step = 0; step < 4; ++step)
                    panel[(u * 16 + w * 4 + step) * 2 + half] = decode(words.word[w], step);
        }
    }
}

// y += scale * (panel times T tokens' elements from `column`).
template <int U, int T>
void multiply_panel(const Weights* panel, const Floats (&scale)[2], const void* const* tokens, int64_t column, float* y,
                    int64_t y_stride, bool first) {
    const uint16_t* x[T];
    for (int t = 0; t < T; ++t) x[t] = static_cast<const uint16_t*>(tokens[t]) + column;
    Floats part[2][T];
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) part[0][t] = part[1][t] = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int pair = 0; pair < 16 * U; ++pair) {
        const Weights low = panel[2 * pair], high = panel[2 * pair + 1];
#pragma GCC unroll 12
        for (int t = 0; t < T; ++t) {
            const __m512i v = load_pair(x[t] + 2 * pair);
            part[0][t] = dot(part[0][t], low, v);
            part[1][t] = dot(part[1][t], high, v);
        }
    }
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
        float* sum = y + t * y_stride;
        const Floats zero = _mm512_setzero_ps();
        _mm512_storeu_ps(sum, _mm512_fmadd_ps(part[0][t], scale[0], first ? zero : _mm512_loadu_ps(sum)));
        _mm512_storeu_ps(sum + kLanes, _mm512_fmadd_ps(part[1][t], scale[1], first ? zero : _mm512_loadu_ps(sum + kLanes)));
    }
}

using MultiplyPanel = void (*)(const Weights*, const Floats (&)[2], const void* const*, int64_t, float*, int64_t, bool);

template <int U>
constexpr MultiplyPanel kMultiplyPanel[kPanelTokens + 1] = {
    nullptr,
    multiply_panel<U, 1>, multiply_panel<U, 2>, multiply_panel<U, 3>, multiply_panel<U, 4>,
    multiply_panel<U, 5>, multiply_panel<U, 6>, multiply_panel<U, 7>, multiply_panel<U, 8>,
    multiply_panel<U, 9>, multiply_panel<U, 10>, multiply_panel<U, 11>, multiply_panel<U, 12>};

template <int U>
void multiply_many(const Tile& tile) {
    constexpr int group_codes = U * kUnitCodes;
    const int64_t row_bytes = tile.packed_stride * 4, columns = tile.num_words * 8, tokens = tile.num_tokens;
    const int64_t chunk = kChunkBytes / (tokens * kLineCodes * 2) * kLineCodes;
    const int64_t steps = (tokens + kPanelTokens - 1) / kPanelTokens;
    alignas(64) Weights panel[16 * U * 2];
    for (int64_t column = 0; column < columns; column += chunk) {
        const int64_t count = columns - column < chunk ? columns - column : chunk;
        for (int64_t row = 0; row < tile.num_rows; row += kPanelRows) {
            const char* rows = reinterpret_cast<const char*>(tile.packed) + row * row_bytes;
            const uint16_t* scales = tile.scale + row * tile.scale_stride;
            const char* ahead = prefetched(tile, rows, row + kPanelRows, kPanelRows);
            Floats scale[2][8];
            for (int64_t at = 0; at < count; at += group_codes) {
                const int64_t group = (column + at) / group_codes, place = at / group_codes % 8;
                if (!place) {
                    const int64_t left = (count - at) / group_codes;
                    const int num = static_cast<int>(left < 8 ? left : 8);
                    load_scales(scales + group, tile.scale_stride, num, scale[0]);
                    load_scales(scales + kLanes * tile.scale_stride + group, tile.scale_stride, num, scale[1]);
                }
                decode_panel<U>(rows, row_bytes, ahead, group, panel);
                const Floats factor[2] = {scale[0][place], scale[1][place]};
                // As equal steps as can be: twelve and one would take longer than seven and six.
                for (int64_t step = 0; step < steps; ++step) {
                    const int64_t begin = step * tokens / steps, end = (step + 1) * tokens / steps;
                    kMultiplyPanel<U>[end - begin](panel, factor, tile.x + begin, column + at,
                                                   tile.y + begin * tile.y_stride + row, tile.y_stride, group == 0);
                }
            }
        }
    }
}

template <int U>
void multiply_groups(const Tile& tile) {
    switch (tile.num_tokens) {
        case 0: return;
        case 1: return multiply_few<U, 1>(tile, 0);
        case 2: return multiply_few<U, 2>(tile, 0);
        case 3: return multiply_few<U, 3>(tile, 0);
        case 4: return multiply_few<U, 4>(tile, 0);
        case 5: return multiply_few<U, 5>(tile, 0);
        case 6: return multiply_few<U, 6>(tile, 0);
        case 7: return multiply_few<U, 7>(tile, 0);
        case 8: return multiply_few<U, 8>(tile, 0);
        default: return multiply_many<U>(tile);
    }
}

void multiply(const Tile& tile) {
    if (tile.group_size == 128) multiply_groups<4>(tile);
    if (tile.group_size == 64) multiply_groups<2>(tile);
    if (tile.group_size == 32) multiply_groups<1>(tile);
}

uint16_t float_to_bf16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // NaN stays NaN
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);                 // ties to even
}

// Codes j and j + 4 of a word are multiplied together, so their elements lie side by side.
void arrange(const float* src, int64_t first, int64_t count, void* row) {
    uint16_t* dst = static_cast<uint16_t*>(row);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t column = first + i, place = column % 8;
        dst[column - place + place % 4 * 2 + place / 4] = float_to_bf16(src[i]);
    }
}

}  // namespace

const Path kAvx512Bf16Path = {"avx512_bf16", sizeof(uint16_t), arrange, multiply};

}  // namespace moe4
