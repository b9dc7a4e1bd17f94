// AVX-512 VNNI, in two precisions: `avx512_int16` rounds a token's activations to sixteen bits (W4A16), `avx512_vnni`
// to eight (W4A8), which is never taken unless it is asked for. Each token's are rounded by themselves and in the
// groups of the weights. vnni.h says what is computed; a header each, how it is for so many tokens.
#include "vnni.h"
#include "vnni_lines.h"
#include "vnni_panel.h"
#include "vnni_rows.h"

namespace moe4 {
namespace {

template <int Planes>
void multiply(const Tile& tile) {
    switch (tile.num_tokens) {
        case 0: return;
        case 1: return multiply_by_lines<Planes, 1>(tile);
        case 2: return multiply_by_lines<Planes, 2>(tile);
        case 3: return multiply_by_rows<Planes, 3>(tile);
        case 4: return multiply_by_rows<Planes, 4>(tile);
        case 5: return multiply_by_rows<Planes, 5>(tile);
        case 6: return multiply_by_rows<Planes, 6>(tile);
        case 7: return multiply_by_rows<Planes, 7>(tile);
        case 8: return multiply_by_rows<Planes, 8>(tile);
        default: return multiply_by_panels<Planes>(tile);
    }
}

}  // namespace

const Path kAvx512Int16Path = {"avx512_int16", 2, nullptr, multiply<2>, arrange_groups<2>, sizeof(Head)};
const Path kAvx512VnniPath = {"avx512_vnni", 1, nullptr, multiply<1>, arrange_groups<1>, sizeof(Head)};

}  // namespace moe4
