// The sum over tokens of x^T x in bf16 products and float32 sums (vdpbf16ps), lower triangle.
#pragma once

#include <cstdint>

namespace moe4 {

// Panel p, pair t and column c of x: the bf16 values of tokens 2t and 2t + 1 in column p * kPanelColumns + c, as one
// word at (p * num_pairs + t) * kPanelColumns + c. Columns past `size` are zero.
struct Gram {
    int64_t num_pairs;
    int64_t size;
    const uint32_t* panels;
    float* total;  // [size][size], added to
};

constexpr int64_t kPanelColumns = 48;

#ifdef MOE4_HAVE_AVX512_BF16
// Adds the block of rows of panel `left` and columns of panel `right`.
void add_gram_block(const Gram& gram, int64_t left, int64_t right);
#endif

}  // namespace moe4
