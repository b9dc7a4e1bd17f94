// The same cases without a fuzzer; the last line says which paths ran and how many results agreed.
//
//   run_paths COUNT [SEED]   as many random inputs, of 0 to 64 bytes each
//   run_paths FILE...        inputs that `make fuzz` has kept, such as one that failed
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "check_int8.h"
#include "check_paths.h"
#include "paths.h"

namespace {

int64_t check_random(int count, unsigned seed) {
    std::mt19937 random(seed);
    int64_t compared = 0;
    for (int i = 0; i < count; ++i) {
        std::vector<uint8_t> data(random() % 65);
        for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
        compared += check_case(data.data(), data.size()) + check_int8_linear(random());
    }
    return compared;
}

int64_t check_file(const char* name) {
    std::ifstream file(name, std::ios::binary);
    if (!file) {
        std::fprintf(stderr, "%s: cannot be read\n", name);
        std::exit(2);
    }
    const std::vector<char> data{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    return check_case(reinterpret_cast<const uint8_t*>(data.data()), data.size());
}

}  // namespace

int main(int argc, char** argv) {
    char* end = nullptr;
    const long count = argc > 1 ? std::strtol(argv[1], &end, 10) : 100;
    int64_t compared = 0;
    if (argc <= 1 || !*end) {
        compared = check_random(static_cast<int>(count), argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 0);
    } else {
        for (int i = 1; i < argc; ++i) compared += check_file(argv[i]);
    }
    for (const moe4::Path* path : moe4::usable_paths()) std::printf("%s ", path->name);
    std::printf("%" PRId64 "\n", compared);
}
