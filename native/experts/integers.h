// What the paths that round activations to integers agree on.
#pragma once

#include <cstdint>

namespace moe4 {
namespace {

// Of a group of a token's elements, after them in an arranged row.
struct Head {
    float scale;     // of the elements
    int32_t offset;  // -8 times their sum, which takes out the 8 that a code is stored with
};

constexpr int kUnitCodes = 32;  // codes of four words, the smallest group

}  // namespace
}  // namespace moe4
