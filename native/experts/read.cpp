#include "read.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "threads.h"

namespace moe4 {
namespace {

constexpr int64_t kPieceBytes = 256 << 10;
constexpr int64_t kStepBytes = 256;
constexpr int64_t kAheadBytes = 4096;  // asked for so far ahead

// Whole steps, in vectors of so many bytes. It is compiled for those that it is inlined into.
template <int Bytes>
inline __attribute__((always_inline)) uint64_t read_steps(const char* at, int64_t bytes) {
    using Words __attribute__((vector_size(Bytes))) = uint64_t;
    constexpr int kVectors = kStepBytes / Bytes;
    Words sums[kVectors] = {};
    for (int64_t done = 0; done + kStepBytes <= bytes; done += kStepBytes) {
        for (int64_t line = 0; line < kStepBytes; line += 64) __builtin_prefetch(at + done + kAheadBytes + line, 0, 2);
        for (int i = 0; i < kVectors; ++i) {
            Words words;
            std::memcpy(&words, at + done + i * Bytes, sizeof words);
            sums[i] ^= words;
        }
    }
    uint64_t parts[kStepBytes / 8], sum = 0;
    std::memcpy(parts, sums, sizeof parts);
    for (uint64_t part : parts) sum ^= part;
    return sum;
}

uint64_t read_small(const char* at, int64_t bytes) { return read_steps<16>(at, bytes); }

#ifdef __x86_64__
__attribute__((target("avx512f"))) uint64_t read_wide(const char* at, int64_t bytes) {
    return read_steps<64>(at, bytes);
}

const auto read_whole_steps = __builtin_cpu_supports("avx512f") ? read_wide : read_small;
#else
const auto read_whole_steps = read_small;
#endif

uint64_t read_piece(const char* at, int64_t bytes) {
    uint64_t sum = read_whole_steps(at, bytes);
    for (int64_t done = bytes / kStepBytes * kStepBytes; done + 8 <= bytes; done += 8) {
        uint64_t word;
        std::memcpy(&word, at + done, sizeof word);
        sum ^= word;
    }
    return sum;
}

struct Work {
    std::vector<Range> pieces;
    std::atomic<size_t> next{0};
    std::atomic<uint64_t> sum{0};

    static void run(void* data) {
        Work& work = *static_cast<Work*>(data);
        uint64_t sum = 0;
        for (size_t i = work.next++; i < work.pieces.size(); i = work.next++)
            sum ^= read_piece(work.pieces[i].begin, work.pieces[i].bytes);
        work.sum ^= sum;
    }
};

}  // namespace

uint64_t read_memory(const Range* ranges, int64_t count, int num_threads) {
    Work work;
    for (int64_t i = 0; i < count; ++i)
        for (int64_t done = 0; done < ranges[i].bytes; done += kPieceBytes)
            work.pieces.push_back({ranges[i].begin + done, std::min(kPieceBytes, ranges[i].bytes - done)});
    run_on_threads(&Work::run, &work, num_threads);
    return work.sum;
}

}  // namespace moe4
