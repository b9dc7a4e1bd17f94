#include "processor.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#ifdef __x86_64__
#include <cpuid.h>
#endif
#if defined(MOE4_HAVE_AMX_INT16) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moe4 {
namespace {

Processor find_processor() {
    Processor found;
#ifdef __x86_64__
    __builtin_cpu_init();
    found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    found.avx512f = __builtin_cpu_supports("avx512f");
    found.avx512 = found.avx2 && found.avx512f && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#ifdef MOE4_HAVE_AVX512_BF16
    found.avx512_bf16 = found.avx512 && __builtin_cpu_supports("avx512bf16");
#endif
#ifdef MOE4_HAVE_AVX512_VNNI
    found.avx512_vnni = found.avx512 && __builtin_cpu_supports("avx512vnni");
#endif
#ifdef MOE4_HAVE_AVXVNNI_INT16
    unsigned eax, ebx, ecx, edx;
    constexpr unsigned avxvnni = 1u << 4;
    found.avxvnni = found.avx2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & avxvnni) != 0;
#ifdef MOE4_AVXVNNI_BY_AVX512
    found.avxvnni = found.avx512 && __builtin_cpu_supports("avx512vnni");  // a test's build: path_avxvnni_int16.cpp
#endif
#endif
#endif
#if defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long dotprod = 1ul << 20;  // HWCAP_ASIMDDP
    found.neon_dotprod = (getauxval(AT_HWCAP) & dotprod) != 0;
    constexpr unsigned long bf16 = 1ul << 14;  // HWCAP2_BF16
    found.neon_bf16 = (getauxval(AT_HWCAP2) & bf16) != 0;
#endif
    return found;
}

}  // namespace

const Processor& processor() {
    static const Processor found = find_processor();
    return found;
}

bool amx_is_usable() {
#if defined(MOE4_HAVE_AMX_INT16) && defined(__linux__)
    unsigned eax, ebx, ecx, edx;
    constexpr unsigned tiles = 1u << 24, int8 = 1u << 25;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & tiles) == 0 || (edx & int8) == 0) return false;
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

}  // namespace moe4
