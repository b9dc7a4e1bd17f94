// Many tokens: decode a *panel*, 64 rows of some groups, into the second cache; multiply it by six tokens at a time.
// The multipliers are the limit.
#pragma once

#include "vnni.h"

namespace moe4 {
namespace {

constexpr int kPanelTokens = 6;             // tokens multiplied at once: 24 of 32 registers hold sums
constexpr int64_t kPanelVectors = 1024;     // of a panel, at most: 64 KiB
constexpr int64_t kPanelGroups = 8;         // of a panel, at most
constexpr int64_t kChunkBytes = 384 << 10;  // of the tokens' elements used again and again, to stay there, too

static_assert(kChunkBytes >= kTileTokens * kLineBytes<2>, "a chunk has a group of every token at least");

// Some groups of 16 * R rows, decoded. Of a group, first the even codes, word by word, then the odd ones; for every
// word R vectors, of sixteen rows each.
template <int Planes, int R, int64_t Vectors = kPanelVectors>
struct Panel {
    Bytes codes[Vectors];
    Floats scale[R][kPanelGroups];
    int64_t first, count;
    const Groups<Planes>& groups;
};

template <int Planes, int R>
MOE4_INLINE void decode_group(const Groups<Planes>& groups, const char* rows, int64_t group, Bytes* codes) {
    constexpr int kRows = R * kLanes;
    const int64_t units = groups.units, rows_asked = kRows / units;
    for (int64_t u = 0; u < units; ++u) {
        const int64_t unit = group * units + u;
        for (int64_t row = u * rows_asked; row < (u + 1) * rows_asked; ++row)
            _mm_prefetch(rows + row * groups.row_bytes + (group + 1) * units * 16, _MM_HINT_T0);
        for (int part = 0; part < R; ++part) {
            const Words words = load_words(rows + part * kLanes * groups.row_bytes + unit * 16, groups.row_bytes);
#pragma GCC unroll 4
            for (int w = 0; w < 4; ++w) {
                codes[(u * 4 + w) * R + part] = even_codes(words.word[w]);
                codes[(units * 4 + u * 4 + w) * R + part] = odd_codes(words.word[w]);
            }
        }
    }
}

// What is asked for while a panel is multiplied, line by line: its share of the rows that are decoded next.
struct Ahead {
    const char* line;
    const char* end;
};

// y += scale * (panel times its groups of T tokens' rows), group by group.
template <int Planes, int R, int T>
void multiply_panel(const Panel<Planes, R>& panel, const void* const* tokens, Ahead& ahead, float* y,
                    int64_t y_stride) {
    const char* x[T];
    for (int t = 0; t < T; ++t) x[t] = static_cast<const char*>(tokens[t]);
    const int64_t words = panel.groups.units * 4;
    for (int64_t i = 0; i < panel.count; ++i) {
        const int64_t group = panel.first + i, next_line = ahead.line < ahead.end ? 64 : 0;
        const char* line = ahead.line;
        Sums part[T][R];
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r)
                part[t][r] = Planes == 1 ? offset_of(panel.groups.head(x[t], group)) : _mm512_setzero_si512();
        for (int plane = 0; plane < Planes; ++plane) {
            if (plane) {
#pragma GCC unroll 6
                for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
                    for (int r = 0; r < R; ++r)
                        part[t][r] = _mm512_add_epi32(raise(part[t][r]), offset_of(panel.groups.head(x[t], group)));
            }
            const Bytes* codes = panel.codes + i * words * 2 * R;
            const int64_t place = place_of_unit<Planes>(group * panel.groups.units) + plane * kLineCodes;
            // A whole line's odd elements follow its even ones: one loop for both.
            const int64_t run = words == 16 ? 32 : words;
            for (int64_t done = 0; done < 2 * words; done += run) {
                int64_t at = place + (done ? 64 : 0);
                for (const Bytes* const end = codes + run * R; codes < end; codes += R, at += 4) {
                    _mm_prefetch(line, _MM_HINT_T1);
                    line += next_line;
                    Bytes four[R];
#pragma GCC unroll 4
                    for (int r = 0; r < R; ++r) four[r] = codes[r];
#pragma GCC unroll 6
                    for (int t = 0; t < T; ++t) {
                        const Bytes elements = load_four(x[t] + at);
#pragma GCC unroll 4
                        for (int r = 0; r < R; ++r) part[t][r] = dot(part[t][r], four[r], elements);
                    }
                }
            }
        }
        ahead.line = line;
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t) {
            const Head& head = panel.groups.head(x[t], group);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                float* sum = y + t * y_stride + r * kLanes;
                const Floats total = group ? _mm512_loadu_ps(sum) : _mm512_setzero_ps();
                _mm512_storeu_ps(sum, add_scaled(part[t][r], panel.scale[r][i], head, total));
            }
        }
    }
}

template <int Planes, int R>
using MultiplyPanel = void (*)(const Panel<Planes, R>&, const void* const*, Ahead&, float*, int64_t);

template <int Planes, int R>
constexpr MultiplyPanel<Planes, R> kMultiplyPanel[kPanelTokens + 1] = {
    nullptr,
    multiply_panel<Planes, R, 1>, multiply_panel<Planes, R, 2>, multiply_panel<Planes, R, 3>,
    multiply_panel<Planes, R, 4>, multiply_panel<Planes, R, 5>, multiply_panel<Planes, R, 6>};

// Groups begin..end of 16 * R rows, times all tokens.
template <int Planes, int R>
void multiply_groups(const Tile& tile, const Groups<Planes>& groups, int64_t row, int64_t begin, int64_t end) {
    constexpr int kRows = R * kLanes;
    const int64_t tokens = tile.num_tokens, steps = (tokens + kPanelTokens - 1) / kPanelTokens;
    const int64_t fit = kPanelVectors / (8 * R * groups.units), most = fit < kPanelGroups ? fit : kPanelGroups;
    const char* rows = reinterpret_cast<const char*>(tile.packed) + row * groups.row_bytes;
    const uint16_t* scales = tile.scale + row * tile.scale_stride;
    const char* const next_rows = prefetched(tile, rows, row + kRows, kRows);
    Panel<Planes, R> panel{{}, {}, 0, 0, groups};
    for (int64_t group = begin; group < end; group += most) {
        panel.first = group;
        panel.count = end - group < most ? end - group : most;
        for (int r = 0; r < R; ++r)
            load_scales(scales + r * kLanes * tile.scale_stride + group, tile.scale_stride,
                        static_cast<int>(panel.count), panel.scale[r]);
        for (int64_t i = 0; i < panel.count; ++i)
            decode_group<Planes, R>(groups, rows, group + i, panel.codes + i * 8 * R * groups.units);
        const int64_t group_bytes = groups.units * 16 * kRows;
        Ahead ahead{next_rows + group * group_bytes, next_rows + (group + panel.count) * group_bytes};
        // As equal steps as can be: six and one would take longer than four and three.
        for (int64_t step = 0; step < steps; ++step) {
            const int64_t from = step * tokens / steps, to = (step + 1) * tokens / steps;
            kMultiplyPanel<Planes, R>[to - from](panel, tile.x + from, ahead, tile.y + from * tile.y_stride + row,
                                                 tile.y_stride);
        }
    }
}

template <int Planes>
void multiply_by_panels(const Tile& tile) {
    const Groups<Planes> groups(tile);
    const int64_t chunk = kChunkBytes / (tile.num_tokens * tile.group_size * Planes);
    for (int64_t begin = 0; begin < groups.count; begin += chunk) {
        const int64_t end = groups.count - begin < chunk ? groups.count : begin + chunk;
        int64_t row = 0;
        for (; row + 4 * kLanes <= tile.num_rows; row += 4 * kLanes)
            multiply_groups<Planes, 4>(tile, groups, row, begin, end);
        if (row < tile.num_rows) multiply_groups<Planes, 2>(tile, groups, row, begin, end);
    }
}

}  // namespace
}  // namespace moe4
