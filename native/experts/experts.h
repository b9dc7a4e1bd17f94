// The fused expert forward: routing, the two matrix products of each expert, the weighted sum.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "path.h"

namespace moe4 {

enum class Dtype { kBf16, kF16, kF32 };

struct BadIdError : std::out_of_range {
    using std::out_of_range::out_of_range;
};

// Where one expert's matrices begin, row after row, on the boundaries of their types. Rows of gate and up lie without
// holes; rows of down lie as far apart as Call says, so that a rank may take some columns of a larger matrix.
struct ExpertWeights {
    const uint32_t *gate, *up, *down;                    // [inter, hidden / 8] twice, [hidden, inter / 8]
    const uint16_t *gate_scale, *up_scale, *down_scale;  // [inter, hidden / group_size] twice, [hidden, inter / ...]
};

// As moe4.kernels.fused_experts documents. All tensors are contiguous and have these shapes; the caller has checked.
struct Call {
    int64_t tokens, hidden, inter, experts, top_k;
    int group_size, num_threads;
    Dtype dtype;               // of x and out
    const void* x;             // [tokens, hidden]
    void* out;                 // [tokens, hidden], may be x
    const ExpertWeights* weights_of;  // [experts]
    int64_t down_stride;       // words from a row of down to the next
    int64_t down_scale_stride; // scales from a row of down to the next
    const float* weights;      // [tokens, top_k]
    const int64_t* ids;        // [tokens, top_k]
};

// Throws BadIdError, before any weight is read, if an id is neither -1 nor an expert's; std::bad_alloc.
// Memory beside the arguments: about tokens * (hidden + top_k * inter) elements of the path's x_bytes, and 256 bytes
// a token for each thread.
void run_experts(const Path& path, const Call& call);

}  // namespace moe4
