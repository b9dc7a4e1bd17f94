// AVX-512 VNNI, in two precisions: `avx512_int16` rounds a token's activations to sixteen bits (W4A16), `avx512_vnni`
// to eight (W4A8), which is never taken unless it is asked for. Each token's are rounded by themselves and in the
// groups of the weights. vnni.h says what is computed; a header each, how it is for so many tokens.
#include "vnni_few.h"
#include "vnni_panel.h"

namespace moe4 {
namespace {

template <int Planes>
void multiply(const Tile& tile) {
    if (!multiply_few<Planes>(tile)) multiply_by_panels<Planes>(tile);
}

}  // namespace

const Path kAvx512Int16Path = {"avx512_int16", 2, nullptr, multiply<2>, arrange_groups<2>, sizeof(Head)};
const Path kAvx512VnniPath = {"avx512_vnni", 1, nullptr, multiply<1>, arrange_groups<1>, sizeof(Head)};

}  // namespace moe4
