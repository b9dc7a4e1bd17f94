// Both loops for vectors of N floats, which GCC and Clang compile for the flags of the file that includes this.
//
// Everything is in an anonymous namespace and takes no template of the C++ standard library, so that the linker
// cannot merge a function with one compiled for instructions the machine lacks.
#pragma once

#include <cstddef>

#include "columns.h"

namespace moe4 {
namespace {

#define MOE4_INLINE inline __attribute__((always_inline))

template <int N>
struct Lanes {
    typedef float Floats __attribute__((vector_size(4 * N)));
    typedef int32_t Ints __attribute__((vector_size(4 * N)));
    typedef int8_t Bytes __attribute__((vector_size(N)));
};

// Nearest code to x, halves to even: between -8 and 7 the sum with 1.5 * 2^23 keeps no fraction.
template <class V>
MOE4_INLINE V to_code(V x) {
    constexpr float shift = 12582912.0f;
    const V low = V{} - 8.0f, high = V{} + 7.0f;
    x = x < low ? low : x;
    x = x > high ? high : x;
    return (x + shift) - shift;
}

template <class V>
MOE4_INLINE V load(const float* from) {
    V value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

// R vectors of rows at a time; `count` of their R * N rows are there, the others read as zeros and are dropped.
template <int N, int R, bool kWhole>
MOE4_INLINE void solve_strip(const Block& block, int64_t first, int64_t count) {
    using V = typename Lanes<N>::Floats;
    using Bytes = typename Lanes<N>::Bytes;
    constexpr int kChains = 4;  // sums that do not wait for each other
    V d[kMaxColumns][R];
    const auto read = [count](V (&to)[R], const float* from) {
        if (kWhole) {
            __builtin_memcpy(to, from, sizeof to);
        } else {
            __builtin_memset(to, 0, sizeof to);
            __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
        }
    };
    for (int64_t j = 0; j < block.num_columns; ++j) {
        const float* factor = block.factor + j * block.num_columns;
        V sum[kChains][R];
        read(sum[0], block.missed + j * block.num_rows + first);
        for (int c = 1; c < kChains; ++c)
            for (int r = 0; r < R; ++r) sum[c][r] = V{};
        int64_t i = 0;
        for (; i + kChains <= j; i += kChains)
#pragma GCC unroll 4
            for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r) sum[c][r] += d[i + c][r] * factor[i + c];
        for (; i < j; ++i)
            for (int r = 0; r < R; ++r) sum[0][r] += d[i][r] * factor[i];

        V w[R], scale[R];
        read(w, block.work + j * block.stride + first);
        read(scale, block.scales + block.group[j] * block.num_rows + first);
        Bytes codes[R];
        for (int r = 0; r < R; ++r) {
            const V total = (sum[0][r] + sum[1][r]) + (sum[2][r] + sum[3][r]);
            const V code = to_code<V>((w[r] + total / factor[j]) / scale[r]);
            d[j][r] = w[r] - code * scale[r];
            codes[r] = __builtin_convertvector(code, Bytes);
        }
        const int64_t there = kWhole ? R * N : count;
        __builtin_memcpy(block.work + j * block.stride + first, d[j], static_cast<size_t>(there) * sizeof(float));
        __builtin_memcpy(block.codes + j * block.num_rows + first, codes, static_cast<size_t>(there));
    }
}

template <int N, int R>
void solve_rows(const Block& block, int64_t first, int64_t count) {
    int64_t row = 0;
    for (; row + N * R <= count; row += N * R) solve_strip<N, R, true>(block, first + row, N * R);
    if (row < count) solve_strip<N, R, false>(block, first + row, count - row);
}

// To bf16, halves to even, as torch rounds.
MOE4_INLINE float round_to_bf16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

template <int N, int K>
MOE4_INLINE float group_error(const typename Lanes<N>::Floats (&w)[K], const typename Lanes<N>::Floats (&weight)[K],
                              float scale) {
    using V = typename Lanes<N>::Floats;
    V sums[2] = {V{}, V{}};
#pragma GCC unroll 32
    for (int k = 0; k < K; ++k) {
        const V missing = to_code<V>(w[k] / scale) * scale - w[k];
        sums[k % 2] += missing * missing * weight[k];
    }
    sums[0] += sums[1];
    float error = 0;
    for (int lane = 0; lane < N; ++lane) error += sums[0][lane];
    return error;
}

template <int N, int G>
void search_groups(const Search& search, int64_t first, int64_t count) {
    using V = typename Lanes<N>::Floats;
    constexpr int K = G / N;
    for (int64_t row = first; row < first + count; ++row) {
        for (int64_t group = 0; group < search.num_groups; ++group) {
            const int64_t place = row * search.num_groups + group;
            V w[K], weight[K];
            __builtin_memcpy(w, search.w + place * G, sizeof w);
            __builtin_memcpy(weight, search.weight + group * G, sizeof weight);
            float best = search.best[place];
            float best_error = group_error<N, K>(w, weight, best);
            for (int64_t f = 0; f < search.num_factors; ++f) {
                float scale = round_to_bf16(search.full[place] * search.factors[f]);
                if (__builtin_fabsf(scale) < search.smallest) scale = search.smallest;
                const float error = group_error<N, K>(w, weight, scale);
                if (error < best_error) best = scale, best_error = error;
            }
            search.best[place] = best;
        }
    }
}

template <int N>
void search_rows(const Search& search, int64_t first, int64_t count) {
    if (search.group_size == 128) search_groups<N, 128>(search, first, count);
    if (search.group_size == 64) search_groups<N, 64>(search, first, count);
    if (search.group_size == 32) search_groups<N, 32>(search, first, count);
}

}  // namespace
}  // namespace moe4
