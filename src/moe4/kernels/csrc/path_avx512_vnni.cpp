// AVX-512 VNNI, W4A8, never taken unless it is asked for: activations are rounded to int8, each token's by themselves
// and in the groups of the weights.
//
// Sixteen rows of a matrix are the sixteen lanes of a vector, so that a row's sum stays in its lane and the group's
// scales take part once a group. A word's codes stay unsigned, code + 8: its even codes are the four bytes of a lane of
// one vector, its odd ones, after a shift, those of another, and `vpdpbusd` multiplies either by four int8 elements of
// a token, broadcast. Sums over a group are exact integers, and begin at -8 times the sum of the group's elements,
// which takes the 8 out again.
//
//   few tokens:  decode into registers, multiply at once. Memory is the limit.
//   many tokens: decode a *panel*, 32 rows of some groups (16 KiB at most), into the first cache; multiply it by twelve
//                tokens at a time. The multipliers are the limit.
//
// Each element, whatever is computed beside it: total = (scale of the weights * scale of the token) * group's sum +
// total, group by group, from zero; the product in parentheses is rounded to float, the rest once more.
//
// An arranged row is its groups one after the other: a Head, then the elements, in each eight the even ones first.
//
// As in tile.h, everything is in an anonymous namespace and nothing of the C++ library is used.
#include "rows_avx512.h"

namespace moe4 {
namespace {

using Sums = __m512i;   // an int32 of each of sixteen rows
using Bytes = __m512i;  // four codes + 8 of each of sixteen rows

struct Head {
    float scale;     // of the group's elements
    int32_t offset;  // -8 times their sum
};

constexpr int kPanelRows = 32;    // rows of a panel
constexpr int kUnitCodes = 32;    // codes of four words, the smallest group
constexpr int kPanelTokens = 12;  // tokens multiplied at once by a panel: 24 of 32 registers hold sums
constexpr int64_t kChunkBytes = 384 << 10;  // of the tokens' elements used again and again, to stay in the second cache

constexpr int64_t kPanelVectors = 256;      // of a panel, at most: 16 KiB

constexpr int64_t bytes_of_group(int64_t codes) { return codes + static_cast<int64_t>(sizeof(Head)); }

static_assert(kChunkBytes >= kTileTokens * bytes_of_group(128), "a chunk has a group of every token at least");

// Groups as they lie in memory.
struct Groups {
    int64_t row_bytes;  // from a row of weights to the next
    int64_t units;      // of a group: 1, 2 or 4
    int64_t x_bytes;    // of a group in an arranged row
    int64_t count;      // in a row

    MOE4_INLINE explicit Groups(const Tile& tile)
        : row_bytes(tile.packed_stride * 4),
          units(tile.group_size / kUnitCodes),
          x_bytes(bytes_of_group(tile.group_size)),
          count(tile.num_words * 8 / tile.group_size) {}
};

MOE4_INLINE Bytes even_codes(__m512i word) { return _mm512_and_si512(word, _mm512_set1_epi8(15)); }
MOE4_INLINE Bytes odd_codes(__m512i word) { return even_codes(_mm512_srli_epi16(word, 4)); }

// Add the products of four codes with the same four elements for all rows. Written out, because GCC 12 copies each sum
// before its own function for this instruction, and stores it.
MOE4_INLINE Sums dot(Sums sum, Bytes codes, __m512i elements) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(elements));
    return sum;
}

MOE4_INLINE __m512i load_four(const char* x) {
    int four;
    __builtin_memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}

MOE4_INLINE Sums first_sum(const char* x) {
    int offset;
    __builtin_memcpy(&offset, x + __builtin_offsetof(Head, offset), sizeof offset);
    return _mm512_set1_epi32(offset);
}

MOE4_INLINE Floats add_scaled(Sums sum, Floats scale, const char* x, Floats total) {
    float x_scale;
    __builtin_memcpy(&x_scale, x + __builtin_offsetof(Head, scale), sizeof x_scale);
    return _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(x_scale)), _mm512_cvtepi32_ps(sum), total);
}

// --- few tokens -----------------------------------------------------------------------------------------------------

// Q groups from `group`, for sixteen rows and T tokens: add them to the totals. Several groups at a time, as each one's
// sum is a chain of dependent instructions.
template <int T, int Q>
MOE4_INLINE void add_groups(const Groups& groups, const char* rows, const char* ahead, int64_t group,
                            const Floats* scale, const char* const (&x)[T], Floats (&total)[T]) {
    const int64_t units = groups.units, x_bytes = groups.x_bytes, first = group * x_bytes;
    Sums part[Q][T];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) part[q][t] = first_sum(x[t] + first + q * x_bytes);
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
        const int64_t place = first + static_cast<int64_t>(sizeof(Head)) + u * kUnitCodes;
#pragma GCC unroll 4
        for (int w = 0; w < 4; ++w)
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q) {
                const Bytes even = even_codes(words[q].word[w]), odd = odd_codes(words[q].word[w]);
                const int64_t at = place + q * x_bytes + w * 8;
#pragma GCC unroll 8
                for (int t = 0; t < T; ++t) part[q][t] = dot(part[q][t], even, load_four(x[t] + at));
#pragma GCC unroll 8
                for (int t = 0; t < T; ++t) part[q][t] = dot(part[q][t], odd, load_four(x[t] + at + 4));
            }
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t)
            total[t] = add_scaled(part[q][t], scale[q], x[t] + first + q * x_bytes, total[t]);
}

template <int T>
void multiply_few(const Tile& tile) {
    constexpr int Q = T <= 2 ? 4 : T <= 4 ? 2 : 1;
    const Groups groups(tile);
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
            int group = 0;
            for (; group + Q <= count; group += Q)
                add_groups<T, Q>(groups, rows, ahead, first + group, scale + group, x, total);
            for (; group < count; ++group)
                add_groups<T, 1>(groups, rows, ahead, first + group, scale + group, x, total);
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) _mm512_storeu_ps(tile.y + t * tile.y_stride + row, total[t]);
    }
}

// --- many tokens ----------------------------------------------------------------------------------------------------

// Decode one group of 32 rows: for every four codes a vector of rows 0..15 and one of rows 16..31.
MOE4_INLINE void decode_group(const Groups& groups, const char* rows, const char* ahead, int64_t group, Bytes* codes) {
    const int64_t units = groups.units, rows_asked = kPanelRows / units;
    for (int64_t u = 0; u < units; ++u) {
        const int64_t unit = group * units + u;
#pragma GCC unroll 8
        for (int line = 0; line < 8; ++line) _mm_prefetch(ahead + unit * 512 + line * 64, _MM_HINT_T1);
        for (int64_t row = u * rows_asked; row < (u + 1) * rows_asked; ++row)
            _mm_prefetch(rows + row * groups.row_bytes + (group + 1) * units * 16, _MM_HINT_T0);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const Words words = load_words(rows + half * kLanes * groups.row_bytes + unit * 16, groups.row_bytes);
#pragma GCC unroll 4
            for (int w = 0; w < 4; ++w) {
                codes[(u * 8 + w * 2) * 2 + half] = even_codes(words.word[w]);
                codes[(u * 8 + w * 2 + 1) * 2 + half] = odd_codes(words.word[w]);
            }
        }
    }
}

// Some groups of 32 rows, decoded.
struct Panel {
    Bytes codes[kPanelVectors];
    Floats scale[2][8];  // of rows 0..15, of rows 16..31, for each group
    int64_t first, count, units, x_bytes;
};

// y += scale * (panel times its groups of T tokens' rows), group by group.
template <int T>
void multiply_panel(const Panel& panel, const void* const* tokens, float* y, int64_t y_stride) {
    const char* x[T];
    for (int t = 0; t < T; ++t) x[t] = static_cast<const char*>(tokens[t]) + panel.first * panel.x_bytes;
    const Bytes* codes = panel.codes;
    for (int64_t group = 0; group < panel.count; ++group) {
        Sums part[2][T];
#pragma GCC unroll 12
        for (int t = 0; t < T; ++t) part[0][t] = part[1][t] = first_sum(x[t]);
        for (int64_t four = 0; four < 8 * panel.units; ++four) {
            const Bytes low = codes[2 * four], high = codes[2 * four + 1];
#pragma GCC unroll 12
            for (int t = 0; t < T; ++t) {
                const __m512i elements = load_four(x[t] + sizeof(Head) + 4 * four);
                part[0][t] = dot(part[0][t], low, elements);
                part[1][t] = dot(part[1][t], high, elements);
            }
        }
        const bool none = panel.first + group == 0;
#pragma GCC unroll 12
        for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                float* sum = y + t * y_stride + half * kLanes;
                const Floats total = none ? _mm512_setzero_ps() : _mm512_loadu_ps(sum);
                _mm512_storeu_ps(sum, add_scaled(part[half][t], panel.scale[half][group], x[t], total));
            }
            x[t] += panel.x_bytes;
        }
        codes += 16 * panel.units;
    }
}

using MultiplyPanel = void (*)(const Panel&, const void* const*, float*, int64_t);

constexpr MultiplyPanel kMultiplyPanel[kPanelTokens + 1] = {
    nullptr,
    multiply_panel<1>, multiply_panel<2>,  multiply_panel<3>,  multiply_panel<4>,
    multiply_panel<5>, multiply_panel<6>,  multiply_panel<7>,  multiply_panel<8>,
    multiply_panel<9>, multiply_panel<10>, multiply_panel<11>, multiply_panel<12>};

void multiply_many(const Tile& tile) {
    const Groups groups(tile);
    const int64_t tokens = tile.num_tokens, steps = (tokens + kPanelTokens - 1) / kPanelTokens;
    const int64_t chunk = kChunkBytes / (tokens * groups.x_bytes), most = groups.units == 4 ? 4 : 8;
    Panel panel;
    panel.units = groups.units;
    panel.x_bytes = groups.x_bytes;
    for (int64_t begin = 0; begin < groups.count; begin += chunk) {
        const int64_t end = groups.count - begin < chunk ? groups.count : begin + chunk;
        for (int64_t row = 0; row < tile.num_rows; row += kPanelRows) {
            const char* rows = reinterpret_cast<const char*>(tile.packed) + row * groups.row_bytes;
            const uint16_t* scales = tile.scale + row * tile.scale_stride;
            const char* ahead = prefetched(tile, rows, row + kPanelRows, kPanelRows);
            for (int64_t group = begin; group < end; group += most) {
                panel.first = group;
                panel.count = end - group < most ? end - group : most;
                for (int half = 0; half < 2; ++half)
                    load_scales(scales + half * kLanes * tile.scale_stride + group, tile.scale_stride,
                                static_cast<int>(panel.count), panel.scale[half]);
                for (int64_t i = 0; i < panel.count; ++i)
                    decode_group(groups, rows, ahead, group + i, panel.codes + i * 16 * groups.units);
                // As equal steps as can be: twelve and one would take longer than seven and six.
                for (int64_t step = 0; step < steps; ++step) {
                    const int64_t from = step * tokens / steps, to = (step + 1) * tokens / steps;
                    kMultiplyPanel[to - from](panel, tile.x + from, tile.y + from * tile.y_stride + row, tile.y_stride);
                }
            }
        }
    }
}

void multiply(const Tile& tile) {
    switch (tile.num_tokens) {
        case 0: return;
        case 1: return multiply_few<1>(tile);
        case 2: return multiply_few<2>(tile);
        case 3: return multiply_few<3>(tile);
        case 4: return multiply_few<4>(tile);
        case 5: return multiply_few<5>(tile);
        case 6: return multiply_few<6>(tile);
        case 7: return multiply_few<7>(tile);
        case 8: return multiply_few<8>(tile);
        default: return multiply_many(tile);
    }
}

// The scale is the group's largest magnitude / 127; an element is rounded to the nearest multiple, of two to the even
// one. A group in which nothing reaches 2^-100 counts as zero. What is not finite leaves a scale that is not either.
void arrange(const float* src, int64_t first, int64_t count, int group_size, void* row) {
    const __m128i evens_first = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    const int64_t group_bytes = bytes_of_group(group_size);
    char* dst = static_cast<char*>(row) + first / group_size * group_bytes;
    for (int64_t done = 0; done < count; done += group_size, dst += group_bytes) {
        const float* x = src + done;
        __m512i largest = _mm512_setzero_si512();
        for (int i = 0; i < group_size; i += 16) {
            const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(x + i));
            largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
        }
        const uint32_t largest_bits = _mm512_reduce_max_epu32(largest);
        float magnitude;
        __builtin_memcpy(&magnitude, &largest_bits, sizeof magnitude);
        const __m512 inverse = _mm512_set1_ps(magnitude >= 0x1p-100f ? 127.0f / magnitude : 0.0f);
        __m512i sum = _mm512_setzero_si512();
        for (int i = 0; i < group_size; i += 16) {
            const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
            const __m128i elements = _mm512_cvtepi32_epi8(rounded);
            sum = _mm512_add_epi32(sum, _mm512_cvtepi8_epi32(elements));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + sizeof(Head) + i),
                             _mm_shuffle_epi8(elements, evens_first));
        }
        const Head head = {magnitude / 127.0f, -8 * _mm512_reduce_add_epi32(sum)};
        __builtin_memcpy(dst, &head, sizeof head);
    }
}

}  // namespace

const Path kAvx512VnniPath = {"avx512_vnni", 1, nullptr, multiply, arrange, sizeof(Head)};

}  // namespace moe4
