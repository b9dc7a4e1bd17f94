// The two loops of the quantizer that no matrix product can do: columns of a block, and the search for scales.
// A path is one instruction set's version of both, in a translation unit of its own (../experts/path.h).
#pragma once

#include <cstdint>

namespace moe4 {

// A block of columns of GPTQ in transposed layout: entry [j][row] of a matrix with `stride` rows lies at
// j * stride + row. Column j is rounded after the columns before it, of this block and of all earlier ones:
//   target = w_j + (missed_j + sum_{i < j} d_i factor[i][j]) / factor[j][j];  d_j = w_j - round(target / s) s
struct Block {
    int64_t num_columns;      // at most kMaxColumns
    int64_t num_rows;
    int64_t stride;
    float* work;              // [columns][rows]: w in, d out
    const float* missed;      // [columns][rows], stride num_rows
    int8_t* codes;            // [columns][rows], out
    const float* scales;      // [groups][rows]
    const int64_t* group;     // [columns]: which row of `scales` a column takes
    const float* factor;      // [columns][columns], transposed: factor[i][j] lies at j * num_columns + i
};

constexpr int64_t kMaxColumns = 256;

// For every group of a row, the first of full * factors[0], full * factors[1], ... (in bf16) that has less error,
// sum_k weight_k (w_k - s q_k)^2, than `best` and all before it.
struct Search {
    int64_t num_rows;
    int64_t num_groups;
    int64_t group_size;       // 32, 64 or 128
    const float* w;           // [rows][groups * group_size]
    const float* weight;      // [groups * group_size]
    const float* full;        // [rows][groups]
    const float* factors;
    int64_t num_factors;
    float smallest;           // stands in for a scale below it
    float* best;              // [rows][groups], in and out
};

struct ColumnPath {
    const char* name;
    // Rows first..first+count, all columns of the block.
    void (*solve)(const Block& block, int64_t first, int64_t count);
    void (*search)(const Search& search, int64_t first, int64_t count);
};

extern const ColumnPath kPortableColumns;
#ifdef MOE4_HAVE_AVX2
extern const ColumnPath kAvx2Columns;
#endif
#ifdef MOE4_HAVE_AVX512
extern const ColumnPath kAvx512Columns;
#endif

}  // namespace moe4
