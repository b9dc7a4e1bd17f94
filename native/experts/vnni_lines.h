// One or two tokens: rows in the order in which they lie in memory, four at a time, a line of each at once.
//
// The sixteen lanes of a vector are the words of a line, so a line's product leaves sixteen sums to add up. Those of
// four groups of four rows are added up together, in a tree: each step takes two vectors and gives one, until one is
// left, whose lanes are the groups and, in each, the rows. When sixteen rows are done, their sums are scaled and added
// up as everywhere, a row a lane.
#pragma once

#include "vnni.h"

namespace moe4 {
namespace {

constexpr int kQuad = 4;            // rows taken at once
constexpr int kAheadRows = 8;       // rows whose lines are asked for ahead, in the order in which they lie
constexpr int64_t kSpanLines = 64;  // of the rows, that are taken before the next: bounds the sums

// [a0 + a2, a1 + a3, b0 + b2, b1 + b3] of each four lanes.
MOE4_INLINE Sums add_twos(Sums a, Sums b) {
    return _mm512_add_epi32(_mm512_mask_blend_epi64(0xaa, a, b), _mm512_alignr_epi8(b, a, 8));
}
// [a0 + a1, a2 + a3, b0 + b1, b2 + b3] of each four lanes.
MOE4_INLINE Sums add_neighbours(Sums a, Sums b) {
    const __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
                            _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)));
}
// [a.0 + a.1, b.0 + b.1, a.2 + a.3, b.2 + b.3], by fours of lanes.
MOE4_INLINE Sums add_quarters(Sums a, Sums b) {
    const Sums other = _mm512_mask_blend_epi64(0xcc, b, a);
    return _mm512_add_epi32(_mm512_mask_blend_epi64(0xcc, a, b), _mm512_shuffle_i64x2(other, other, 0xb1));
}
// [a.0 + a.2, a.1 + a.3, b.0 + b.2, b.1 + b.3], by fours of lanes.
MOE4_INLINE Sums add_halves(Sums a, Sums b) {
    return _mm512_add_epi32(_mm512_mask_blend_epi64(0xf0, a, b), _mm512_alignr_epi64(b, a, 4));
}

// Have a value in a register: GCC would load it from memory again for each use, and loads are what is short here.
MOE4_INLINE __m512i held(__m512i value) {
    __asm__("" : "+v"(value));
    return value;
}

// Some lines of four rows.
struct Lines {
    const char* rows;
    int64_t row_bytes;
    const char* ahead;
    int64_t ahead_line, ahead_row;
    int64_t left;          // whole and partial lines
    __mmask16 last_words;  // of the last of them
};

// Sums of T tokens.
template <int T>
struct Parts {
    Sums token[T];
};

// A line of four rows: of each four words, the four rows' sums. Whole: the line is there, and all of its words.
template <int Planes, int T, bool Whole>
MOE4_INLINE Parts<T> multiply_line(const Lines& lines, const char* const (&x)[T], int line) {
    Parts<T> result;
    if (!Whole && line >= lines.left) {
        for (int t = 0; t < T; ++t) result.token[t] = _mm512_setzero_si512();
        return result;
    }
    const __mmask16 present = !Whole && line + 1 == lines.left ? lines.last_words : static_cast<__mmask16>(0xffff);
    Bytes even[kQuad], odd[kQuad];
#pragma GCC unroll 4
    for (int r = 0; r < kQuad; ++r) {
        const char* from = lines.rows + r * lines.row_bytes + line * 64;
        const __m512i words = held(Whole ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi32(present, from));
        _mm_prefetch(lines.ahead + line * lines.ahead_line + r * lines.ahead_row, _MM_HINT_T1);
        even[r] = even_codes(words);
        odd[r] = odd_codes(words);
    }
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
        const char* at = x[t] + line * kLineBytes<Planes>;
        Sums sum[kQuad];
#pragma GCC unroll 4
        for (int r = 0; r < kQuad; ++r) sum[r] = _mm512_setzero_si512();
#pragma GCC unroll 2
        for (int plane = 0; plane < Planes; ++plane) {
            const Bytes evens = held(_mm512_load_si512(at + plane * kLineCodes));
            const Bytes odds = held(_mm512_load_si512(at + plane * kLineCodes + 64));
#pragma GCC unroll 4
            for (int r = 0; r < kQuad; ++r) {
                if (plane) sum[r] = raise(sum[r]);
                sum[r] = dot(dot(sum[r], even[r], evens), odd[r], odds);
            }
        }
        result.token[t] = add_neighbours(add_twos(sum[0], sum[1]), add_twos(sum[2], sum[3]));
    }
    return result;
}

// Four groups of four rows: one, two or four lines, for groups of 32, 64 or 128.
template <int Planes, int T, bool Whole, int Count>
MOE4_INLINE Parts<T> multiply_lines(const Lines& lines, const char* const (&x)[T], int line) {
    if constexpr (Count == 1) {
        return multiply_line<Planes, T, Whole>(lines, x, line);
    } else {
        const Parts<T> a = multiply_lines<Planes, T, Whole, Count / 2>(lines, x, line);
        const Parts<T> b = multiply_lines<Planes, T, Whole, Count / 2>(lines, x, line + Count / 2);
        Parts<T> result;
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t)
            result.token[t] = Count == 2 ? add_quarters(a.token[t], b.token[t]) : add_halves(a.token[t], b.token[t]);
        return result;
    }
}

// All groups of a span of sixteen rows: the sums of a row in its lane.
template <int T>
using SpanSums = Sums[T][kSpanLines * 4];

// Multiply all lines of four rows; they are rows row..row + 4 of the sums.
template <int Planes, int T, int Count>
MOE4_INLINE void multiply_quad(Lines lines, const char* const (&tokens)[T], SpanSums<T>& sums, int row) {
    const char* x[T];
    for (int t = 0; t < T; ++t) x[t] = tokens[t];
    for (int64_t group = 0; lines.left > 0; lines.left -= Count, group += 4) {
        const bool whole = lines.left > Count || (lines.left == Count && lines.last_words == 0xffff);
        const Parts<T> tree = whole ? multiply_lines<Planes, T, true, Count>(lines, x, 0)
                                    : multiply_lines<Planes, T, false, Count>(lines, x, 0);
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) {
            int32_t* to = reinterpret_cast<int32_t*>(&sums[t][group]) + row;
            constexpr int second = Count == 2 ? 2 : 1;  // add_quarters leaves the groups of two lines in turn
            _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm512_castsi512_si128(tree.token[t]));
            _mm_store_si128(reinterpret_cast<__m128i*>(to + second * kLanes),
                            _mm512_extracti32x4_epi32(tree.token[t], 1));
            _mm_store_si128(reinterpret_cast<__m128i*>(to + (3 - second) * kLanes),
                            _mm512_extracti32x4_epi32(tree.token[t], 2));
            _mm_store_si128(reinterpret_cast<__m128i*>(to + 3 * kLanes), _mm512_extracti32x4_epi32(tree.token[t], 3));
            x[t] += Count * kLineBytes<Planes>;
        }
        lines.rows += Count * 64;
        lines.ahead += Count * lines.ahead_line;
    }
}

template <int Planes, int T, int Count>
void multiply_by_lines(const Tile& tile) {
    const Groups<Planes> groups(tile);
    const int64_t num_lines = (tile.num_words + 15) / 16, line_groups = 4 / groups.units;
    const __mmask16 last_words = static_cast<__mmask16>(0xffffu >> (num_lines * 16 - tile.num_words));
    const bool gaps = tile.packed_stride != tile.num_words;
    const char* const packed = reinterpret_cast<const char*>(tile.packed);
    SpanSums<T> sums;
    for (int64_t first = 0; first < tile.num_rows; first += kLanes) {
        const uint16_t* scales = tile.scale + first * tile.scale_stride;
        Floats total[T];
        for (int t = 0; t < T; ++t) total[t] = _mm512_setzero_ps();
        for (int64_t span = 0; span < num_lines; span += kSpanLines) {
            const int64_t end = num_lines - span < kSpanLines ? num_lines : span + kSpanLines;
            const char* x[T];
            for (int t = 0; t < T; ++t) x[t] = static_cast<const char*>(tile.x[t]) + span * kLineBytes<Planes>;
            prefetch_scales(tile, first + kLanes, kLanes, span, end, num_lines);
            for (int row = 0; row < kLanes; row += kQuad) {
                const int64_t later = first + row + kAheadRows - tile.num_rows;
                const char* ahead = later < 0 ? packed + (first + row + kAheadRows) * groups.row_bytes
                                              : tile.next + later * groups.row_bytes;
                const int64_t ahead_line = gaps ? 64 : kQuad * 64;
                multiply_quad<Planes, T, Count>({packed + (first + row) * groups.row_bytes + span * 64,
                                                 groups.row_bytes, ahead + span * ahead_line, ahead_line,
                                                 gaps ? groups.row_bytes : 64, end - span,
                                                 end == num_lines ? last_words : static_cast<__mmask16>(0xffff)},
                                                x, sums, row);
            }
            const int64_t group = span * line_groups, last = end == num_lines ? groups.count : end * line_groups;
            for (int64_t i = group; i < last; i += 8) {
                const int count = static_cast<int>(last - i < 8 ? last - i : 8);
                Floats scale[8];
                load_scales(scales + i, tile.scale_stride, count, scale);
                for (int t = 0; t < T; ++t) {
                    const char* row = static_cast<const char*>(tile.x[t]);
                    for (int j = 0; j < count; ++j) {
                        const Head& head = groups.head(row, i + j);
                        const Sums sum = _mm512_add_epi32(sums[t][i - group + j], offset_of(head));
                        total[t] = add_scaled(sum, scale[j], head, total[t]);
                    }
                }
            }
        }
        for (int t = 0; t < T; ++t) _mm512_storeu_ps(tile.y + t * tile.y_stride + first, total[t]);
    }
}

template <int Planes, int T>
void multiply_by_lines(const Tile& tile) {
    if (tile.group_size == 128) multiply_by_lines<Planes, T, 4>(tile);
    if (tile.group_size == 64) multiply_by_lines<Planes, T, 2>(tile);
    if (tile.group_size == 32) multiply_by_lines<Planes, T, 1>(tile);
}

}  // namespace
}  // namespace moe4
