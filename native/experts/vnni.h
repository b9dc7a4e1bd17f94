// What the paths of AVX-512 VNNI have in common: how a token's elements lie, and products of codes and elements that
// are exact in integers.
//
// A token's elements are integers, each group's with a scale of its own: of eight bits (W4A8), one *plane*; or of
// sixteen (W4A16), two planes, 256 * high + low, both of eight bits. Weights are multiplied as code + 8, which is what
// a word holds. `vpdpbusd` adds to each 32-bit lane the products of four of them with four elements of a plane. Sums
// over a group are exact, so it does not matter in which order they are made; and -8 times the sum of the group's
// elements takes the 8 out again.
//
// Each element of a result, whatever is computed beside it and whichever way: total = (scale of the weights * scale of
// the token) * group's sum + total, group by group, from zero; the product in parentheses is rounded to float, the
// rest once more.
//
// An arranged row is its lines, of 128 columns each, then a Head for each group. A line is its planes, the high one
// first; a plane is the 64 even elements, then the 64 odd ones. So the four bytes at 4 * w meet word w.
//
// As in tile.h, everything is in an anonymous namespace and nothing of the C++ library is used.
#pragma once

#include "integers.h"
#include "rows_avx512.h"

namespace moe4 {
namespace {

using Sums = __m512i;   // sixteen sums
using Bytes = __m512i;  // codes + 8 or elements, four a lane

template <int Planes>
constexpr int64_t kLineBytes = Planes * kLineCodes;

// Groups as they lie in memory.
template <int Planes>
struct Groups {
    int64_t row_bytes;  // from a row of weights to the next
    int64_t units;      // of a group: 1, 2 or 4
    int64_t count;      // in a row
    int64_t heads;      // where they begin in an arranged row

    MOE4_INLINE explicit Groups(const Tile& tile)
        : row_bytes(tile.packed_stride * 4),
          units(tile.group_size / kUnitCodes),
          count(tile.num_words * 8 / tile.group_size),
          heads((tile.num_words + 15) / 16 * kLineBytes<Planes>) {}

    MOE4_INLINE const Head& head(const char* x, int64_t group) const {
        return reinterpret_cast<const Head*>(x + heads)[group];
    }
};

// Where a unit's four words of even elements of the first plane begin in an arranged row. The odd ones are 64 bytes
// on, the second plane 128.
template <int Planes>
MOE4_INLINE int64_t place_of_unit(int64_t unit) {
    return unit / 4 * kLineBytes<Planes> + unit % 4 * 16;
}

MOE4_INLINE Bytes even_codes(__m512i words) { return _mm512_and_si512(words, _mm512_set1_epi8(15)); }
MOE4_INLINE Bytes odd_codes(__m512i words) { return even_codes(_mm512_srli_epi16(words, 4)); }

// Add products to each lane. Written out, because GCC 12 copies each sum before its own function for this instruction,
// and stores it.
MOE4_INLINE Sums dot(Sums sum, Bytes codes, Bytes elements) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(elements));
    return sum;
}

// The sum over the first of two planes, ready to be added to by the second.
MOE4_INLINE Sums raise(Sums high) { return _mm512_slli_epi32(high, 8); }

MOE4_INLINE Sums offset_of(const Head& head) { return _mm512_set1_epi32(head.offset); }

MOE4_INLINE Bytes load_four(const char* x) {
    int four;
    __builtin_memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}

MOE4_INLINE Floats add_scaled(Sums sum, Floats scale, const Head& head, Floats total) {
    return _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(head.scale)), _mm512_cvtepi32_ps(sum), total);
}

// Sixteen elements to their places: the even or the odd ones of a unit.
template <int Planes>
MOE4_INLINE void store_plane(__m512i elements, char* dst) {
    if constexpr (Planes == 2) {
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(elements, _mm512_set1_epi32(128)), 8);
        _mm_store_si128(reinterpret_cast<__m128i*>(dst), _mm512_cvtepi32_epi8(high));
        dst += kLineCodes;  // the low plane: what is left of eight bits
    }
    _mm_store_si128(reinterpret_cast<__m128i*>(dst), _mm512_cvtepi32_epi8(elements));
}

// A group's scale is its largest magnitude / 127 (one plane) or / 32512, which is 127 * 256 (two); an element is
// rounded to the nearest multiple, of two to the even one. A group in which nothing reaches 2^-100 counts as zero.
// What is not finite leaves a scale that is not either.
template <int Planes>
void arrange_groups(const float* src, int64_t first, int64_t count, const Columns& columns, void* row) {
    constexpr float kMost = Planes == 1 ? 127.0f : 32512.0f;
    const int64_t heads = (columns.count + kLineCodes - 1) / kLineCodes * kLineBytes<Planes>;
    Head* head = reinterpret_cast<Head*>(static_cast<char*>(row) + heads) + first / columns.group_size;
    for (int64_t done = 0; done < count; done += columns.group_size, ++head) {
        const float* x = src + done;
        __m512i largest = _mm512_setzero_si512();
        for (int i = 0; i < columns.group_size; i += 16) {
            const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(x + i));
            largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
        }
        const uint32_t largest_bits = _mm512_reduce_max_epu32(largest);
        float magnitude;
        __builtin_memcpy(&magnitude, &largest_bits, sizeof magnitude);
        const __m512 inverse = _mm512_set1_ps(magnitude >= 0x1p-100f ? kMost / magnitude : 0.0f);
        __m512i sum = _mm512_setzero_si512();
        for (int i = 0; i < columns.group_size; i += kUnitCodes) {
            const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
            const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i + 16), inverse));
            const __m512i evens_at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            const __m512i even = _mm512_permutex2var_epi32(low, evens_at, high);
            const __m512i odd =
                _mm512_permutex2var_epi32(low, _mm512_or_si512(evens_at, _mm512_set1_epi32(1)), high);
            sum = _mm512_add_epi32(sum, _mm512_add_epi32(even, odd));
            char* dst = static_cast<char*>(row) + place_of_unit<Planes>((first + done + i) / kUnitCodes);
            store_plane<Planes>(even, dst);
            store_plane<Planes>(odd, dst + 64);
        }
        *head = {magnitude / kMost, -8 * _mm512_reduce_add_epi32(sum)};
    }
}

}  // namespace
}  // namespace moe4
