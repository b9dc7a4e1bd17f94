// What this machine's processor can do, and the system lets it do.
#pragma once

namespace moe4 {

struct Processor {
    bool avx2 = false;         // with FMA
    bool avx512f = false;
    bool avx512 = false;       // F, BW, DQ and VL, and AVX2 with FMA
    bool avx512_bf16 = false;  // these too, with AVX-512
    bool avx512_vnni = false;
    bool avxvnni = false;      // the form without AVX-512, with AVX2
    bool neon_dotprod = false;
    bool neon_bf16 = false;
};

const Processor& processor();

// Whether the processor has AMX with 8-bit integers, and Linux lets this process use its tiles: it asks for them.
bool amx_is_usable();

}  // namespace moe4
