// One case of the expert forward, made from bytes, on every path of the machine against float64.
#pragma once

#include <cstddef>
#include <cstdint>

// Shapes, ids, strides, offsets and types come from the bytes; contents from a generator that they seed. Prints what
// is wrong and aborts, or returns the number of results compared.
int64_t check_case(const uint8_t* data, size_t size);
