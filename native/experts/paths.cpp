#include "paths.h"

#include "processor.h"

namespace moe4 {
namespace {

std::vector<const Path*> find_paths() {
    std::vector<const Path*> found;
    const Processor& can = processor();
    static_cast<void>(can);  // of some machines nothing is asked
#ifdef MOE4_HAVE_AMX_INT16
    if (can.avx512_vnni && amx_is_usable()) found.push_back(&kAmxInt16Path);
#endif
#ifdef MOE4_HAVE_AVX512_VNNI
    if (can.avx512_vnni) found.push_back(&kAvx512Int16Path);
#endif
#ifdef MOE4_HAVE_AVXVNNI_INT16
    if (can.avxvnni) found.push_back(&kAvxVnniInt16Path);
#endif
#ifdef MOE4_HAVE_AVX2_INT16
    if (can.avx2) found.push_back(&kAvx2Int16Path);
#endif
#ifdef MOE4_HAVE_AVX512_BF16
    if (can.avx512_bf16) found.push_back(&kAvx512Bf16Path);
#endif
#ifdef MOE4_HAVE_AVX512
    if (can.avx512) found.push_back(&kAvx512Path);
#endif
#ifdef MOE4_HAVE_AVX2
    if (can.avx2) found.push_back(&kAvx2Path);
#endif
#ifdef MOE4_HAVE_NEON_INT16
    if (can.neon_dotprod) found.push_back(&kNeonInt16Path);
#endif
#ifdef MOE4_HAVE_NEON_BF16
    if (can.neon_bf16) found.push_back(&kNeonBf16Path);
#endif
#ifdef MOE4_HAVE_NEON
    found.push_back(&kNeonPath);  // every 64-bit Arm has it
#endif
    found.push_back(&kPortablePath);
    // On request only: always after the portable path, so never the first.
#ifdef MOE4_HAVE_AVX512_VNNI
    if (can.avx512_vnni) found.push_back(&kAvx512VnniPath);
#endif
    return found;
}

}  // namespace

const std::vector<const Path*>& usable_paths() {
    static const std::vector<const Path*> paths = find_paths();
    return paths;
}

}  // namespace moe4
