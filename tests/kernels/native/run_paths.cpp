// run_paths COUNT [SEED]: as many random cases; the last line says which paths ran and how many results agreed.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "check_paths.h"
#include "paths.h"

int main(int argc, char** argv) {
    const int count = argc > 1 ? std::atoi(argv[1]) : 100;
    std::mt19937 random(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 0);
    int64_t compared = 0;
    for (int i = 0; i < count; ++i) {
        std::vector<uint8_t> data(64);
        for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
        compared += check_case(data.data(), data.size());
    }
    for (const moe4::Path* path : moe4::usable_paths()) std::printf("%s ", path->name);
    std::printf("%" PRId64 "\n", compared);
}
