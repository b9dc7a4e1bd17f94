// y = x (codes * scales)^T: a linear layer whose weights are 8-bit integers with a scale for each output (W8A16).
#pragma once

#include <cstdint>

namespace moe4 {

struct Int8Linear {
    const uint16_t* x;       // [tokens, columns], bf16
    const int8_t* codes;     // [rows, columns]
    const uint16_t* scales;  // [rows], bf16
    uint16_t* out;           // [tokens, rows], bf16
    int64_t tokens, rows, columns;  // rows: a multiple of 4, columns: of 32
    int num_threads;
};

// Whether this machine can.
bool int8_linear_is_usable();

// Memory beside the arguments: 256 bytes a token, of at most 240, and 128 KiB for each thread. Throws std::bad_alloc.
void run_int8_linear(const Int8Linear& call);

// Some rows of it.
struct Int8Tile {
    const int8_t* codes;
    const uint16_t* scales;
    int64_t rows, columns;  // rows: a multiple of 4, at most kInt8Rows
    const void* const* x;   // one row of elements a token
    int64_t tokens;
    float* sums;            // [tokens, kInt8Rows]
    uint16_t* out;
    int64_t out_stride;
    const char* next;       // where the weights to be read after these begin
};

constexpr int64_t kInt8Rows = 64;

#ifdef MOE4_HAVE_AVX512_BF16
void multiply_int8_avx512_bf16(const Int8Tile& tile);
#endif

}  // namespace moe4
