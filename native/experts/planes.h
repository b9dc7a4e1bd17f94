// Sixteen-bit activations in exact integer sums (W4A16), for vectors of sixteen or thirty-two bytes: what `avx512_int16`
// computes (vnni.h says what that is), to the bit, on processors without AVX-512.
//
// A path gives an `Ops`. Its vectors of codes hold sixteen bytes, four words, of Ops::kHalves rows: a *unit* of 32
// codes, the smallest group, so that no vector meets two groups. Four such vectors make a *block* of 4 * kHalves rows;
// vector v holds row v, and row v + 4 in its upper half. A sum over a group leaves four lanes a row, which are added up
// at the group's end, when the planes are joined: from then on a row is a lane.
//
// An arranged row is its units, then a Head for each group. A unit is the high plane's sixteen even elements and its
// sixteen odd ones, then the low plane's: byte j of a unit of codes holds the codes of even element j and of odd element
// j.
//
// As in tile.h, everything is in an anonymous namespace and nothing of the C++ library is used.
#pragma once

#include "integers.h"
#include "tile.h"

namespace moe4 {
namespace {

constexpr int64_t kCodeBytes = kUnitCodes / 2;     // of a unit, in a packed row
constexpr int64_t kElemBytes = 2 * kUnitCodes;     // of a unit, in an arranged one
constexpr int kBlockVectors = 4;
constexpr int64_t kPanelRows = 32;                 // decoded together for many tokens; divides a tile's rows
constexpr int64_t kMostGroups = 64;                // whose scales are laid out at a time

inline int64_t heads_at(int64_t columns) { return (columns + kLineCodes - 1) / kLineCodes * kLineCodes * 2; }

// Whole groups of a row to their places. Built without contraction: `scaled` is rounded before it is shifted.
inline void arrange_planes(const float* src, int64_t first, int64_t count, const Columns& columns, void* row) {
    constexpr float kMost = 32512.0f, kShift = 0x1.8p23f;  // adding kShift rounds to an integer, ties to the even one
    uint32_t shift_bits;
    __builtin_memcpy(&shift_bits, &kShift, sizeof shift_bits);
    Head* head = reinterpret_cast<Head*>(static_cast<char*>(row) + heads_at(columns.count)) + first / columns.group_size;
    for (int64_t done = 0; done < count; done += columns.group_size, ++head) {
        uint32_t largest = 0;
        for (int i = 0; i < columns.group_size; ++i) {
            uint32_t bits;
            __builtin_memcpy(&bits, src + done + i, sizeof bits);
            bits &= 0x7fffffff;
            largest = bits > largest ? bits : largest;
        }
        float magnitude;
        __builtin_memcpy(&magnitude, &largest, sizeof magnitude);
        const float inverse = magnitude >= 0x1p-100f ? kMost / magnitude : 0.0f;
        uint32_t sum = 0;  // unsigned, so that what is not finite may overflow it
        for (int unit = 0; unit < columns.group_size; unit += kUnitCodes) {
            const float* x = src + done + unit;
            char* dst = static_cast<char*>(row) + (first + done + unit) / kUnitCodes * kElemBytes;
            for (int i = 0; i < kUnitCodes; ++i) {
                const float scaled = x[i] * inverse;
                const float shifted = scaled + kShift;
                uint32_t bits;
                __builtin_memcpy(&bits, &shifted, sizeof bits);
                bits -= shift_bits;
                sum += bits;
                const int32_t high = static_cast<int32_t>(bits + 128) >> 8;
                char* at = dst + i % 2 * kCodeBytes + i / 2;
                at[0] = static_cast<char>(high);
                at[2 * kCodeBytes] = static_cast<char>(bits);  // what is left of eight bits
            }
        }
        *head = {magnitude / kMost, static_cast<int32_t>(0u - 8 * sum)};
    }
}

// The sums over a group of a block's rows with a token, without the head's offset. codes(unit, vector, even, odd) gives
// the codes + 8.
template <class Ops, int Units, class Codes>
MOE4_INLINE typename Ops::Sums multiply_group(const Codes& codes, const char* x) {
    typename Ops::Part high[kBlockVectors], low[kBlockVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kBlockVectors; ++v) high[v] = low[v] = Ops::zero();
#pragma GCC unroll 4
    for (int unit = 0; unit < Units; ++unit) {
        const char* at = x + unit * kElemBytes;
        const typename Ops::Bytes high_even = Ops::elements(at), high_odd = Ops::elements(at + kCodeBytes);
        const typename Ops::Bytes low_even = Ops::elements(at + 2 * kCodeBytes);
        const typename Ops::Bytes low_odd = Ops::elements(at + 3 * kCodeBytes);
#pragma GCC unroll 4
        for (int v = 0; v < kBlockVectors; ++v) {
            typename Ops::Bytes even, odd;
            codes(unit, v, even, odd);
            high[v] = Ops::dot(Ops::dot(high[v], even, high_even), odd, high_odd);
            low[v] = Ops::dot(Ops::dot(low[v], even, low_even), odd, low_odd);
        }
    }
    return Ops::add_up(Ops::join(high[0], low[0]), Ops::join(high[1], low[1]), Ops::join(high[2], low[2]),
                       Ops::join(high[3], low[3]));
}

// A tile in units, and where its rows' scales are laid out: a row a lane.
template <class Ops, int Units>
struct Panels {
    static constexpr int64_t kBlockRows = kBlockVectors * Ops::kHalves;
    using Sums = typename Ops::Sums;
    using Bytes = typename Ops::Bytes;
    using Floats = typename Ops::Floats;

    const Tile& tile;
    const int64_t num_groups, row_bytes, heads;
    const char* const packed;

    MOE4_INLINE explicit Panels(const Tile& t)
        : tile(t),
          num_groups(t.num_words / 4 / Units),
          row_bytes(t.packed_stride * 4),
          heads(heads_at(t.num_words * 8)),
          packed(reinterpret_cast<const char*>(t.packed)) {}

    MOE4_INLINE const Head& head(const char* x, int64_t group) const {
        return reinterpret_cast<const Head*>(x + heads)[group];
    }

    // The weights' scales of some groups of `rows` rows, from `row`.
    template <int64_t Rows>
    MOE4_INLINE void lay_out_scales(int64_t row, int64_t group, int64_t count, float (*scales)[Rows]) const {
        for (int64_t r = 0; r < Rows; ++r) {
            const uint16_t* from = tile.scale + (row + r) * tile.scale_stride + group;
            for (int64_t g = 0; g < count; ++g) scales[g][r] = bf16_to_float(from[g]);
        }
    }

    // Ask for the unit-th part of the rows that are multiplied after `count` rows from `row`.
    MOE4_INLINE void prefetch(int64_t row, int64_t count, int64_t unit) const {
        const char* later = row + count < tile.num_rows ? packed + (row + count) * row_bytes : tile.next;
        for (int64_t byte = 0; byte < count * kCodeBytes; byte += 64)
            __builtin_prefetch(later + unit * count * kCodeBytes + byte);  // no fault where nothing is mapped
    }

    MOE4_INLINE void decode(const char* rows, int v, Bytes& even, Bytes& odd) const {
        const Bytes bytes = Ops::load(rows + v * row_bytes, kBlockVectors * row_bytes);
        even = Ops::even_codes(bytes);
        odd = Ops::odd_codes(bytes);
    }

    // One token: codes go from memory into registers.
    MOE4_INLINE void multiply_one() const {
        const char* x = static_cast<const char*>(tile.x[0]);
        float scales[kMostGroups][kBlockRows];
        for (int64_t row = 0; row < tile.num_rows; row += kBlockRows) {
            const char* rows = packed + row * row_bytes;
            Floats total = Ops::no_floats();
            for (int64_t first = 0; first < num_groups; first += kMostGroups) {
                const int64_t count = num_groups - first < kMostGroups ? num_groups - first : kMostGroups;
                lay_out_scales<kBlockRows>(row, first, count, scales);
                for (int64_t g = 0; g < count; ++g) {
                    const int64_t group = first + g;
                    const auto codes = [&](int unit, int v, Bytes& even, Bytes& odd) MOE4_LAMBDA_INLINE {
                        decode(rows + (group * Units + unit) * kCodeBytes, v, even, odd);
                    };
#pragma GCC unroll 4
                    for (int unit = 0; unit < Units; ++unit) prefetch(row, kBlockRows, group * Units + unit);
                    const Sums sums = multiply_group<Ops, Units>(codes, x + group * Units * kElemBytes);
                    total = Ops::add_scaled(sums, scales[g], head(x, group), total);
                }
            }
            Ops::store(tile.y + row, total);
        }
    }

    // More: the codes of a group of some rows are decoded once, for all tokens.
    MOE4_INLINE void multiply_many() const {
        constexpr int64_t kBlocks = kPanelRows / kBlockRows;
        Bytes decoded[kBlocks][Units][kBlockVectors][2];
        float scales[1][kPanelRows];
        Floats total[kTileTokens][kBlocks];
        for (int64_t row = 0; row < tile.num_rows; row += kPanelRows) {
            const char* rows = packed + row * row_bytes;
            for (int64_t t = 0; t < tile.num_tokens; ++t)
                for (int64_t b = 0; b < kBlocks; ++b) total[t][b] = Ops::no_floats();
            for (int64_t group = 0; group < num_groups; ++group) {
                lay_out_scales<kPanelRows>(row, group, 1, scales);
                for (int unit = 0; unit < Units; ++unit) {
                    const char* from = rows + (group * Units + unit) * kCodeBytes;
                    prefetch(row, kPanelRows, group * Units + unit);
                    for (int64_t b = 0; b < kBlocks; ++b)
                        for (int v = 0; v < kBlockVectors; ++v)
                            decode(from + b * kBlockRows * row_bytes, v, decoded[b][unit][v][0], decoded[b][unit][v][1]);
                }
                for (int64_t t = 0; t < tile.num_tokens; ++t) {
                    const char* x = static_cast<const char*>(tile.x[t]);
                    for (int64_t b = 0; b < kBlocks; ++b) {
                        const auto codes = [&](int unit, int v, Bytes& even, Bytes& odd) MOE4_LAMBDA_INLINE {
                            even = decoded[b][unit][v][0];
                            odd = decoded[b][unit][v][1];
                        };
                        const Sums sums = multiply_group<Ops, Units>(codes, x + group * Units * kElemBytes);
                        total[t][b] = Ops::add_scaled(sums, scales[0] + b * kBlockRows, head(x, group), total[t][b]);
                    }
                }
            }
            for (int64_t t = 0; t < tile.num_tokens; ++t)
                for (int64_t b = 0; b < kBlocks; ++b)
                    Ops::store(tile.y + t * tile.y_stride + row + b * kBlockRows, total[t][b]);
        }
    }
};

template <class Ops, int Units>
void multiply_planes(const Tile& tile) {
    const Panels<Ops, Units> panels(tile);
    if (tile.num_tokens == 1) {
        panels.multiply_one();
    } else {
        panels.multiply_many();
    }
}

template <class Ops>
void multiply_planes(const Tile& tile) {
    if (tile.group_size == 128) multiply_planes<Ops, 4>(tile);
    if (tile.group_size == 64) multiply_planes<Ops, 2>(tile);
    if (tile.group_size == 32) multiply_planes<Ops, 1>(tile);
}

}  // namespace
}  // namespace moe4
