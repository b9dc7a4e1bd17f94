// Three to eight tokens: sixteen rows of a matrix are the sixteen lanes of a vector, so that a row's sum stays in its
// lane. Codes are decoded into registers and multiplied at once by four elements of a token, broadcast.
#pragma once

#include "vnni.h"

namespace moe4 {
namespace {

// Q groups from `group`, for sixteen rows and T tokens: add them to the totals. Several groups at a time, as each
// one's sum is a chain of dependent instructions.
template <int Planes, int T, int Q>
MOE4_INLINE void add_groups(const Groups<Planes>& groups, const char* rows, const char* ahead, int64_t group,
                            const Floats* scale, const char* const (&x)[T], Floats (&total)[T]) {
    const int64_t units = groups.units;
    Sums part[Planes][Q][T];
#pragma GCC unroll 2
    for (int p = 0; p < Planes; ++p)
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t)
                part[p][q][t] = Planes == 1 ? offset_of(groups.head(x[t], group + q)) : _mm512_setzero_si512();
    for (int64_t u = 0; u < units; ++u) {
        Words words[Q];
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
            const int64_t unit = (group + q) * units + u;
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const int64_t line = (u * Q + q) * 4 + i;  // of those that hold the next Q groups of these rows
                _mm_prefetch(rows + line % kLanes * groups.row_bytes + (group + Q) * units * 16 + line / kLanes * 64,
                             _MM_HINT_T0);
                _mm_prefetch(ahead + unit * 256 + i * 64, _MM_HINT_T1);
            }
            words[q] = load_words(rows + unit * 16, groups.row_bytes);
        }
#pragma GCC unroll 4
        for (int w = 0; w < 4; ++w)
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q) {
                const Bytes even = even_codes(words[q].word[w]), odd = odd_codes(words[q].word[w]);
                const int64_t at = place_of_unit<Planes>((group + q) * units + u) + w * 4;
#pragma GCC unroll 2
                for (int p = 0; p < Planes; ++p) {
#pragma GCC unroll 8
                    for (int t = 0; t < T; ++t)
                        part[p][q][t] = dot(part[p][q][t], even, load_four(x[t] + at + p * kLineCodes));
#pragma GCC unroll 8
                    for (int t = 0; t < T; ++t)
                        part[p][q][t] = dot(part[p][q][t], odd, load_four(x[t] + at + p * kLineCodes + 64));
                }
            }
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
            const Head& head = groups.head(x[t], group + q);
            Sums sum = part[0][q][t];
            if constexpr (Planes == 2)
                sum = _mm512_add_epi32(_mm512_add_epi32(raise(sum), offset_of(head)), part[1][q][t]);
            total[t] = add_scaled(sum, scale[q], head, total[t]);
        }
}

template <int Planes, int T>
void multiply_by_rows(const Tile& tile) {
    constexpr int Q = T * Planes <= 2 ? 4 : T * Planes <= 10 ? 2 : 1;
    const Groups<Planes> groups(tile);
    const char* x[T];
    for (int t = 0; t < T; ++t) x[t] = static_cast<const char*>(tile.x[t]);
    for (int64_t row = 0; row < tile.num_rows; row += kLanes) {
        const char* rows = reinterpret_cast<const char*>(tile.packed) + row * groups.row_bytes;
        const uint16_t* scales = tile.scale + row * tile.scale_stride;
        const char* ahead = prefetched(tile, rows, row + kLanes, kLanes);
        Floats total[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) total[t] = _mm512_setzero_ps();
        for (int64_t first = 0; first < groups.count; first += 8) {
            const int count = static_cast<int>(groups.count - first < 8 ? groups.count - first : 8);
            Floats scale[8];
            load_scales(scales + first, tile.scale_stride, count, scale);
            prefetch_scales(tile, row + kLanes, kLanes, first, first + count, groups.count);
            int group = 0;
            for (; group + Q <= count; group += Q)
                add_groups<Planes, T, Q>(groups, rows, ahead, first + group, scale + group, x, total);
            for (; group < count; ++group)
                add_groups<Planes, T, 1>(groups, rows, ahead, first + group, scale + group, x, total);
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) _mm512_storeu_ps(tile.y + t * tile.y_stride + row, total[t]);
    }
}

}  // namespace
}  // namespace moe4
