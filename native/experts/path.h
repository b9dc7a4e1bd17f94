// A path: one instruction set's implementation of the kernel's inner part. Each lives in its own translation unit,
// compiled with its own flags, and is reached only through this table of functions.
#pragma once

#include <cstdint>

namespace moe4 {

// Rows of a packed matrix times tokens: y[t * y_stride + r] = sum_k weight[r][k] * x[t][k].
struct Tile {
    const uint32_t* packed;  // [num_rows, num_words], eight codes a word
    const uint16_t* scale;   // [num_rows, num_words * 8 / group_size], bf16
    int64_t num_rows;        // a multiple of 32
    int64_t num_words;
    int64_t packed_stride;   // words from a row to the next
    int64_t scale_stride;    // scales from a row to the next
    int group_size;          // 32, 64 or 128
    const void* const* x;    // one arranged row a token
    int64_t num_tokens;      // at most kTileTokens
    float* y;
    int64_t y_stride;
    const char* next;        // where the weights to be read after these begin
    const char* next_scale;  // and their scales
};

// Tokens multiplied before the next rows are taken; bounds a thread's scratch.
constexpr int64_t kTileTokens = 240;

// The columns of a matrix, and so the elements of a row.
struct Columns {
    int64_t count;
    int group_size;
};

struct Path {
    const char* name;
    // Bytes of one element of an arranged row: 1 (int8), 2 (bf16 or int16) or 4 (float).
    int64_t x_bytes;
    // Put src[0..count), which are columns first..first+count of a row, at their places in the arranged row. The row
    // has round_up(columns, kLineCodes) elements, and those beyond the columns must be zero.
    void (*arrange)(const float* src, int64_t first, int64_t count, void* row);
    void (*multiply)(const Tile& tile);
    // For a path that rounds the elements of each group together: in place of `arrange` (null then), for whole groups.
    // Each group of an arranged row takes group_bytes beside its elements; what lies beyond the columns is never used.
    void (*arrange_groups)(const float* src, int64_t first, int64_t count, const Columns& columns, void* row) = nullptr;
    int64_t group_bytes = 0;
};

// An arranged row is padded to whole lines of this many codes, the longest line of any path.
constexpr int64_t kLineCodes = 128;

extern const Path kPortablePath;
#ifdef MOE4_HAVE_AVX2
extern const Path kAvx2Path;
#endif
#ifdef MOE4_HAVE_AVX2_INT16
extern const Path kAvx2Int16Path;
#endif
#ifdef MOE4_HAVE_AVXVNNI_INT16
extern const Path kAvxVnniInt16Path;
#endif
#ifdef MOE4_HAVE_AVX512
extern const Path kAvx512Path;
#endif
#ifdef MOE4_HAVE_AVX512_BF16
extern const Path kAvx512Bf16Path;
#endif
#ifdef MOE4_HAVE_AVX512_VNNI
extern const Path kAvx512Int16Path;
extern const Path kAvx512VnniPath;
#endif
#ifdef MOE4_HAVE_AMX_INT16
extern const Path kAmxInt16Path;
#endif
#ifdef MOE4_HAVE_NEON
extern const Path kNeonPath;
#endif
#ifdef MOE4_HAVE_NEON_INT16
extern const Path kNeonInt16Path;
#endif
#ifdef MOE4_HAVE_NEON_BF16
extern const Path kNeonBf16Path;
#endif

}  // namespace moe4
