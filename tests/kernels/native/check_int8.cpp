#include "check_int8.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>

#include "int8_linear.h"

namespace {

// Memory of exactly `count` elements: a byte more is a fault.
template <class T>
std::unique_ptr<T[]> block(int64_t count) {
    return std::unique_ptr<T[]>(new T[static_cast<size_t>(count)]);
}

float value_of(uint16_t bf16) {
    const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t random_bf16(std::mt19937& random) {  // +-1..2
    return static_cast<uint16_t>(0x3f80 | (random() & 0x7f) | (random() & 1) << 15);
}

}  // namespace

int64_t check_int8_linear(unsigned seed) {
    if (!moe4::int8_linear_is_usable()) return 0;
    std::mt19937 random(seed);
    const int64_t tokens = random() % 20, rows = 4 * (1 + random() % 40), columns = 32 * (1 + random() % 80);
    const auto x = block<uint16_t>(tokens * columns), scales = block<uint16_t>(rows), out = block<uint16_t>(tokens * rows);
    const auto codes = block<int8_t>(rows * columns);
    for (int64_t i = 0; i < tokens * columns; ++i) x[i] = random_bf16(random);
    for (int64_t i = 0; i < rows; ++i) scales[i] = random_bf16(random);
    for (int64_t i = 0; i < rows * columns; ++i) codes[i] = static_cast<int8_t>(random());
    moe4::run_int8_linear({x.get(), codes.get(), scales.get(), out.get(), tokens, rows, columns,
                           static_cast<int>(1 + random() % 3)});
    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t r = 0; r < rows; ++r) {
            double sum = 0, size = 0;
            for (int64_t k = 0; k < columns; ++k) {
                const double product = double(codes[r * columns + k]) * value_of(x[t * columns + k]);
                sum += product;
                size += std::fabs(product);
            }
            // As in test_int8_linear.py.
            const double scale = value_of(scales[r]), error = 80 * 0x1p-24 * size * std::fabs(scale);
            const double bound = error + 0x1.03p-8 * (std::fabs(sum * scale) + error);
            if (!(std::fabs(value_of(out[t * rows + r]) - sum * scale) <= bound)) {
                std::fprintf(stderr, "int8_linear: too far from float64: %ld tokens, %ld rows, %ld columns\n",
                             long(tokens), long(rows), long(columns));
                std::abort();
            }
        }
    }
    return tokens * rows;
}
