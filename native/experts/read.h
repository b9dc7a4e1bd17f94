// Reading memory and nothing else: the ceiling that the kernels are measured against.
#pragma once

#include <cstdint>

namespace moe4 {

struct Range {
    const char* begin;
    int64_t bytes;
};

// The exclusive or of all whole 64-bit words of these ranges. Threads take the next 256 KiB when they are done with
// some.
uint64_t read_memory(const Range* ranges, int64_t count, int num_threads);

}  // namespace moe4
