// At most eight tokens, each number in the way that suits it.
#pragma once

#include "vnni_lines.h"
#include "vnni_rows.h"

namespace moe4 {
namespace {

// Returns false, with nothing done, if there are more.
template <int Planes>
bool multiply_few(const Tile& tile) {
    switch (tile.num_tokens) {
        case 0: return true;
        case 1: return multiply_by_lines<Planes, 1>(tile), true;
        case 2: return multiply_by_lines<Planes, 2>(tile), true;
        case 3: return multiply_by_rows<Planes, 3>(tile), true;
        case 4: return multiply_by_rows<Planes, 4>(tile), true;
        case 5: return multiply_by_rows<Planes, 5>(tile), true;
        case 6: return multiply_by_rows<Planes, 6>(tile), true;
        case 7: return multiply_by_rows<Planes, 7>(tile), true;
        case 8: return multiply_by_rows<Planes, 8>(tile), true;
        default: return false;
    }
}

}  // namespace
}  // namespace moe4
