#include "paths.h"

#if defined(MOE4_HAVE_NEON_BF16) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(MOE4_HAVE_AMX_INT16) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moe4 {
namespace {

#ifdef MOE4_HAVE_AMX_INT16
// Whether the processor has AMX with 8-bit integers, and Linux lets this process use its tiles.
bool amx_is_usable() {
#ifdef __linux__
    unsigned eax, ebx, ecx, edx;
    constexpr unsigned tiles = 1u << 24, int8 = 1u << 25;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & tiles) == 0 || (edx & int8) == 0) return false;
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}
#endif

std::vector<const Path*> find_paths() {
    std::vector<const Path*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#if defined(MOE4_HAVE_AVX512_BF16) || defined(MOE4_HAVE_AVX512) || defined(MOE4_HAVE_AVX512_VNNI)
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#ifdef MOE4_HAVE_AMX_INT16
    if (avx512 && __builtin_cpu_supports("avx512vnni") && amx_is_usable()) found.push_back(&kAmxInt16Path);
#endif
#ifdef MOE4_HAVE_AVX512_VNNI
    if (avx512 && __builtin_cpu_supports("avx512vnni")) found.push_back(&kAvx512Int16Path);
#endif
#ifdef MOE4_HAVE_AVX512_BF16
    if (avx512 && __builtin_cpu_supports("avx512bf16")) found.push_back(&kAvx512Bf16Path);
#endif
#ifdef MOE4_HAVE_AVX512
    if (avx512) found.push_back(&kAvx512Path);
#endif
#ifdef MOE4_HAVE_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kAvx2Path);
#endif
#if defined(MOE4_HAVE_NEON_BF16) && defined(__linux__)
    constexpr unsigned long bf16 = 1ul << 14;  // HWCAP2_BF16
    if (getauxval(AT_HWCAP2) & bf16) found.push_back(&kNeonBf16Path);
#endif
#ifdef MOE4_HAVE_NEON
    found.push_back(&kNeonPath);  // every 64-bit Arm has it
#endif
    found.push_back(&kPortablePath);
    // On request only: always after the portable path, so never the first.
#ifdef MOE4_HAVE_AVX512_VNNI
    if (avx512 && __builtin_cpu_supports("avx512vnni")) found.push_back(&kAvx512VnniPath);
#endif
    return found;
}

}  // namespace

const std::vector<const Path*>& usable_paths() {
    static const std::vector<const Path*> paths = find_paths();
    return paths;
}

}  // namespace moe4
