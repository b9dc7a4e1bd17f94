#include "read.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "threads.h"

namespace moe4 {
namespace {

constexpr int64_t kPieceBytes = 256 << 10;

using Words __attribute__((vector_size(16))) = uint64_t;
constexpr int kVectors = 16;  // of a step: as many loads may be on their way

uint64_t read_piece(const char* at, int64_t bytes) {
    Words sums[kVectors] = {};
    int64_t done = 0;
    for (; done + kVectors * 16 <= bytes; done += kVectors * 16) {
        for (int i = 0; i < kVectors; ++i) {
            Words words;
            std::memcpy(&words, at + done + i * 16, sizeof words);
            sums[i] ^= words;
        }
    }
    uint64_t sum = 0;
    for (const Words& words : sums) sum ^= words[0] ^ words[1];
    for (; done + 8 <= bytes; done += 8) {
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
