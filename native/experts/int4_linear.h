// y = x W^T with W in INT4 (W4A16): a linear layer by the experts' paths.
#pragma once

#include <cstdint>

#include "experts.h"

namespace moe4 {

struct Int4Linear {
    int64_t tokens, rows, columns;  // rows: a multiple of 32, columns: of group_size
    int group_size, num_threads;    // group_size: 32, 64 or 128
    Dtype dtype;                    // of x and out
    const void* x;                  // [tokens, columns]
    const uint32_t* packed;         // [rows, columns / 8]
    const uint16_t* scales;         // [rows, columns / group_size], bf16
    void* out;                      // [tokens, rows]; not x
};

// Memory beside the arguments: for at most 240 tokens an arranged row each and 256 bytes for each thread.
// Throws std::bad_alloc.
void run_int4_linear(const Path& path, const Int4Linear& call);

}  // namespace moe4
