#include "read.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "processor.h"
#include "work.h"

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

const auto read_whole_steps = processor().avx512f ? read_wide : read_small;
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

}  // namespace

uint64_t read_memory(const Range* ranges, int64_t count, int num_threads) {
    std::vector<Range> pieces;
    for (int64_t i = 0; i < count; ++i)
        for (int64_t done = 0; done < ranges[i].bytes; done += kPieceBytes)
            pieces.push_back({ranges[i].begin + done, std::min(kPieceBytes, ranges[i].bytes - done)});
    std::atomic<uint64_t> sum{0};
    deal_out(static_cast<int64_t>(pieces.size()), num_threads, [&](int64_t, int64_t item, int64_t) {
        sum ^= read_piece(pieces[item].begin, pieces[item].bytes);
    });
    return sum;
}

}  // namespace moe4
