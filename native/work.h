// Numbered pieces of work, dealt out to threads as these are done with what they had.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "threads.h"

namespace moe4 {

constexpr int64_t kThreadWork = 1 << 20;  // multiplications (15 to 70 us) for which it pays to wake a thread
constexpr int64_t kMaxThreads = 512;      // a limit on mistakes: OpenMP ends the process if it gets no more threads

// Call function(slot, item, next) once for each item 0..count-1, on at most num_threads threads. A thread's slot is its
// own, below num_threads: scratch memory may be chosen by it. With kAhead `next` is the item that the thread has taken
// to follow this one, or at least count if it has none; without, it is count: the next is taken when this one is done,
// which spreads a few uneven items better. The function must not throw.
template <bool kAhead = false, class Function>
void deal_out(int64_t count, int num_threads, const Function& function) {
    struct Items {
        const Function& function;
        const int64_t count, num_slots;
        std::atomic<int64_t> next_item{0}, next_slot{0};

        static void take(void* data) {
            Items& self = *static_cast<Items*>(data);
            const int64_t slot = self.next_slot++;
            if (slot >= self.num_slots) return;
            if constexpr (kAhead) {
                for (int64_t item = self.next_item++, next; item < self.count; item = next) {
                    next = self.next_item++;
                    self.function(slot, item, next);
                }
            } else {
                for (int64_t item = self.next_item++; item < self.count; item = self.next_item++)
                    self.function(slot, item, self.count);
            }
        }
    };
    Items items{function, count, std::max(num_threads, 1)};
    run_on_threads(&Items::take, &items, std::max(num_threads, 1));
}

}  // namespace moe4
