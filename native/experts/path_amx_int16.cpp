// AMX: `avx512_int16` with its products of many tokens in tiles. Sums over a group are exact in both, so the bits are
// the same, and fewer tokens go the ways of avx512_int16.
//
// A tile is sixteen rows of 64 bytes, and `tdpbsud` multiplies sixteen tokens' elements of a plane, 64 of each, by
// sixteen rows' codes: those of a decoded panel, where for every word of a group lies a vector of sixteen rows. Four
// tiles take the sums of 32 tokens and 32 rows, two hold elements, two codes.
//
// As in tile.h, everything is in an anonymous namespace and nothing of the C++ library is used.
#include "vnni_few.h"
#include "vnni_panel.h"

namespace moe4 {
namespace {

constexpr int kPlanes = 2;
constexpr int kSide = 16;                // tokens or rows of a tile
constexpr int kBlockTokens = 2 * kSide;  // tokens, and rows, of the four tiles of sums
constexpr int kStep = 64;                // bytes of a token in a tile, at most
constexpr int64_t kTilePanelVectors = 256;  // of a panel: 16 KiB, in the first cache
constexpr int kFewTokens = 12;           // fewer are multiplied as in avx512_int16,
constexpr int kFewInGroupsOf32 = 48;     // and in groups of 32, where a tile is half empty

// As `ldtilecfg` reads it.
struct alignas(64) TileConfig {
    uint8_t palette = 0, start_row = 0, reserved[14] = {};  // palette 0: no tiles
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    TileConfig() = default;

    // Tiles 0 to 3 have sums, 4 and 5 elements, 6 and 7 codes; `step` elements are multiplied at once.
    explicit TileConfig(int step) : palette(1) {
        for (int i = 0; i < 8; ++i) {
            row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? step : 64);
            rows[i] = static_cast<uint8_t>(i < 6 ? kSide : step / 4);
        }
    }
};

// Configures the thread's tiles, and gives them back as they were configured before.
class Tiles {
  public:
    explicit Tiles(int step) {
        const TileConfig config(step);
        __asm__ volatile("sttilecfg %0" : "=m"(before_));
        __asm__ volatile("ldtilecfg %0" ::"m"(config));
    }
    ~Tiles() {
        if (before_.palette) __asm__ volatile("ldtilecfg %0" ::"m"(before_));
        else __asm__ volatile("tilerelease");
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

  private:
    TileConfig before_;
};

#define MOE4_TILE_ZERO(to) __asm__ volatile("tilezero %%tmm" #to ::)
#define MOE4_TILE_LOAD(to, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #to ::"r"(from), "r"(static_cast<int64_t>(stride)) : "memory")
#define MOE4_TILE_STORE(from, to) \
    __asm__ volatile("tilestored %%tmm" #from ", (%0,%1,1)" ::"r"(to), "r"(int64_t{64}) : "memory")
#define MOE4_TILE_DOT(sum, elements, codes) \
    __asm__ volatile("tdpbsud %%tmm" #codes ", %%tmm" #elements ", %%tmm" #sum ::)

// Sums of 32 tokens and 32 rows: [plane][token / 16][row / 16][token % 16], a row in its lane.
using BlockSums = Sums[kPlanes][2][2][kSide];

// The elements of a group of 32 tokens: first of the high plane, then of the low one, `step` bytes for each product.
struct Elements {
    const char* first;
    int64_t stride;   // from a token to the next
    int64_t plane;    // from one plane to the other
    int step, steps;  // bytes of a product; products of a plane
};

// `second`: whether there are more than sixteen tokens.
template <int R>
MOE4_INLINE void multiply_block(const Elements& x, const Bytes* codes, bool second, BlockSums& sums) {
#pragma GCC unroll 2
    for (int plane = 0; plane < kPlanes; ++plane) {
        MOE4_TILE_ZERO(0);
        MOE4_TILE_ZERO(1);
        MOE4_TILE_ZERO(2);
        MOE4_TILE_ZERO(3);
        for (int i = 0; i < x.steps; ++i) {
            const char* elements = x.first + plane * x.plane + i * x.step;
            const Bytes* of_step = codes + i * (x.step / 4) * R;
            MOE4_TILE_LOAD(6, of_step, R * sizeof(Bytes));
            MOE4_TILE_LOAD(4, elements, x.stride);
            MOE4_TILE_DOT(0, 4, 6);
            MOE4_TILE_LOAD(7, of_step + 1, R * sizeof(Bytes));
            MOE4_TILE_DOT(1, 4, 7);
            if (second) {
                MOE4_TILE_LOAD(5, elements + kSide * x.stride, x.stride);
                MOE4_TILE_DOT(2, 5, 6);
                MOE4_TILE_DOT(3, 5, 7);
            }
        }
        MOE4_TILE_STORE(0, &sums[plane][0][0][0]);
        MOE4_TILE_STORE(1, &sums[plane][0][1][0]);
        if (second) {
            MOE4_TILE_STORE(2, &sums[plane][1][0][0]);
            MOE4_TILE_STORE(3, &sums[plane][1][1][0]);
        }
    }
}

template <int Bytes>
MOE4_INLINE void copy(const char* from, char* to) {
    __builtin_memcpy(__builtin_assume_aligned(to, Bytes), __builtin_assume_aligned(from, Bytes), Bytes);
}

// A group of at most 32 tokens, side by side; beyond the last one, the last again.
struct Gathered {
    alignas(64) char bytes[kBlockTokens * kLineBytes<kPlanes>];

    MOE4_INLINE Elements take(const void* const* tokens, int64_t count, const Groups<kPlanes>& groups, int64_t group) {
        const int64_t place = place_of_unit<kPlanes>(group * groups.units), half = groups.units * 16;
        const int64_t padded = count <= kSide ? kSide : kBlockTokens;
        char* to = bytes;
        for (int64_t t = 0; t < padded; ++t) {
            const char* from = static_cast<const char*>(tokens[t < count ? t : count - 1]) + place;
            for (int part = 0; part < 2 * kPlanes; ++part, from += 64, to += half) {  // even and odd ones of each plane
                if (half == 64) copy<64>(from, to);
                else if (half == 32) copy<32>(from, to);
                else copy<16>(from, to);
            }
        }
        const int step = static_cast<int>(2 * half < kStep ? 2 * half : kStep);
        return {bytes, 2 * kPlanes * half, 2 * half, step, static_cast<int>(2 * half / step)};
    }
};

// Whole lines of tokens that lie equally far apart need not be gathered.
MOE4_INLINE bool evenly_apart(const void* const* tokens, int64_t count) {
    const char* const* rows = reinterpret_cast<const char* const*>(tokens);
    for (int64_t t = 2; t < count; ++t)
        if (rows[t] - rows[t - 1] != rows[1] - rows[0]) return false;
    return true;
}

// y += scale * sums, of some tokens and 32 rows.
MOE4_INLINE void add_block(const BlockSums& sums, const Floats (&scale)[2], const Groups<kPlanes>& groups,
                           int64_t group, const void* const* tokens, int64_t count, float* y, int64_t y_stride) {
    for (int64_t t = 0; t < count; ++t) {
        const Head& head = groups.head(static_cast<const char*>(tokens[t]), group);
#pragma GCC unroll 2
        for (int r = 0; r < 2; ++r) {
            const Sums high = raise(sums[0][t / kSide][r][t % kSide]), low = sums[1][t / kSide][r][t % kSide];
            float* at = y + t * y_stride + r * kLanes;
            const Floats total = group ? _mm512_loadu_ps(at) : _mm512_setzero_ps();
            const Sums sum = _mm512_add_epi32(_mm512_add_epi32(high, offset_of(head)), low);
            _mm512_storeu_ps(at, add_scaled(sum, scale[r], head, total));
        }
    }
}

// Groups begin..end of 16 * R rows, times all tokens.
template <int R>
void multiply_tile_groups(const Tile& tile, const Groups<kPlanes>& groups, int64_t row, int64_t begin, int64_t end) {
    constexpr int kRows = R * kLanes;
    const int64_t fit = kTilePanelVectors / (8 * R * groups.units), most = fit < kPanelGroups ? fit : kPanelGroups;
    const char* rows = reinterpret_cast<const char*>(tile.packed) + row * groups.row_bytes;
    const uint16_t* scales = tile.scale + row * tile.scale_stride;
    const char* ahead = prefetched(tile, rows, row + kRows, kRows);
    Panel<kPlanes, R, kTilePanelVectors> panel{{}, {}, 0, 0, groups};
    Gathered gathered;
    alignas(64) BlockSums sums;
    for (int64_t group = begin; group < end; group += most) {
        panel.count = end - group < most ? end - group : most;
        for (int r = 0; r < R; ++r)
            load_scales(scales + r * kLanes * tile.scale_stride + group, tile.scale_stride,
                        static_cast<int>(panel.count), panel.scale[r]);
        const int64_t group_bytes = groups.units * 16 * kRows;
        for (int64_t at = group * group_bytes; at < (group + panel.count) * group_bytes; at += 64)
            _mm_prefetch(ahead + at, _MM_HINT_T1);
        for (int64_t i = 0; i < panel.count; ++i)
            decode_group<kPlanes, R>(groups, rows, group + i, panel.codes + i * 8 * R * groups.units);
        for (int64_t first = 0; first < tile.num_tokens; first += kBlockTokens) {
            const int64_t left = tile.num_tokens - first, count = left < kBlockTokens ? left : kBlockTokens;
            const void* const* tokens = tile.x + first;
            const bool direct = groups.units == 4 && count == kBlockTokens && evenly_apart(tokens, count);
            const char* const x = static_cast<const char*>(tokens[0]);
            for (int64_t i = 0; i < panel.count; ++i) {
                const Elements elements =
                    direct ? Elements{x + place_of_unit<kPlanes>((group + i) * 4),
                                      static_cast<const char*>(tokens[1]) - x, kLineCodes, kStep, 2}
                           : gathered.take(tokens, count, groups, group + i);
                for (int r = 0; r < R; r += 2) {
                    multiply_block<R>(elements, panel.codes + i * 8 * R * groups.units + r, count > kSide, sums);
                    const Floats scale[2] = {panel.scale[r][i], panel.scale[r + 1][i]};
                    add_block(sums, scale, groups, group + i, tokens, count,
                              tile.y + first * tile.y_stride + row + r * kLanes, tile.y_stride);
                }
            }
        }
    }
}

void multiply_by_tiles(const Tile& tile) {
    const Groups<kPlanes> groups(tile);
    const Tiles configured(groups.units == 1 ? kStep / 2 : kStep);
    const int64_t chunk = kChunkBytes / (tile.num_tokens * tile.group_size * kPlanes);
    for (int64_t begin = 0; begin < groups.count; begin += chunk) {
        const int64_t end = groups.count - begin < chunk ? groups.count : begin + chunk;
        int64_t row = 0;
        for (; row + 4 * kLanes <= tile.num_rows; row += 4 * kLanes)
            multiply_tile_groups<4>(tile, groups, row, begin, end);
        if (row < tile.num_rows) multiply_tile_groups<2>(tile, groups, row, begin, end);
    }
}

void multiply(const Tile& tile) {
    if (multiply_few<kPlanes>(tile)) return;
    if (tile.num_tokens < (tile.group_size == 32 ? kFewInGroupsOf32 : kFewTokens)) multiply_by_panels<kPlanes>(tile);
    else multiply_by_tiles(tile);
}

}  // namespace

const Path kAmxInt16Path = {"amx_int16", 2, nullptr, multiply, arrange_groups<kPlanes>, sizeof(Head)};

}  // namespace moe4
