// Plain C++ with the vectors of GCC and Clang, which they compile for any machine: four words a line.
#include "tile.h"

namespace moe4 {
namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));

struct Ops {
    using Elem = float;
    using Acc = Floats;
    using Raw = Words;  // codes as two's complement nibbles
    using Weight = Floats;
    static constexpr int kLanes = 4, kSteps = 8, kStepElems = 4;
    static constexpr int kRows = 2, kTokens = 2;  // 4 totals, 4 line sums, 2 + 1 operands of 16 registers

    static MOE4_INLINE Acc zero() { return Acc{}; }
    static MOE4_INLINE Raw load(const uint32_t* words) {
        Raw raw;
        __builtin_memcpy(&raw, words, sizeof raw);
        return raw ^ 0x88888888u;
    }
    // A line is 32 codes, the smallest group: no row ends within one.
    static MOE4_INLINE Raw load_first(const uint32_t*, int) { __builtin_unreachable(); }
    static MOE4_INLINE Weight decode(Raw raw, int step) {
        return __builtin_convertvector(reinterpret_cast<Ints>(raw << (28 - 4 * step)) >> 28, Floats);
    }
    static MOE4_INLINE Weight load_x(const float* x) {
        Weight w;
        __builtin_memcpy(&w, x, sizeof w);
        return w;
    }
    static MOE4_INLINE Acc dot(Acc sum, Weight w, Weight x) { return sum + w * x; }
    static MOE4_INLINE Acc multiply_add(Acc a, Acc b, Acc c) { return a * b + c; }
    template <int G>
    static MOE4_INLINE Acc scales(const uint16_t* scale) {
        return Acc{} + bf16_to_float(scale[0]);
    }
    template <int G>
    static MOE4_INLINE Acc scales_first(const uint16_t*, int) { __builtin_unreachable(); }
    static MOE4_INLINE float sum(Acc a) { return (a[0] + a[2]) + (a[1] + a[3]); }
};

}  // namespace

const Path kPortablePath = {"portable", sizeof(float), arrange_floats<Ops>, multiply<Ops>};

}  // namespace moe4
