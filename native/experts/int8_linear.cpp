#include "int8_linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "paths.h"
#include "work.h"

namespace moe4 {

#ifdef MOE4_HAVE_AVX512_BF16
namespace {

// Some tokens' products with all rows; threads take the next rows when they are done with some.
class Product {
  public:
    Product(const Int8Linear& call, int64_t first, int64_t tokens)
        : call_(call),
          first_(first),
          tokens_(tokens),
          items_((call.rows + kInt8Rows - 1) / kInt8Rows),
          threads_(std::min<int64_t>({call.num_threads, items_, 1 + tokens * call.rows * call.columns / kThreadWork})),
          sums_(static_cast<size_t>(threads_ * tokens * kInt8Rows)) {
        for (int64_t t = 0; t < tokens; ++t) x_.push_back(call.x + (first + t) * call.columns);
    }

    void run() {
        deal_out<true>(items_, static_cast<int>(threads_), [this](int64_t slot, int64_t item, int64_t next) {
            multiply(item, next, sums_.data() + slot * tokens_ * kInt8Rows);
        });
    }

  private:
    void multiply(int64_t item, int64_t next, float* sums) const {
        const int64_t row = item * kInt8Rows, after = (next < items_ ? next : item) * kInt8Rows;
        multiply_int8_avx512_bf16({call_.codes + row * call_.columns, call_.scales + row,
                                   std::min(kInt8Rows, call_.rows - row), call_.columns, x_.data(), tokens_, sums,
                                   call_.out + first_ * call_.rows + row, call_.rows,
                                   reinterpret_cast<const char*>(call_.codes + after * call_.columns)});
    }

    const Int8Linear& call_;
    const int64_t first_, tokens_, items_, threads_;
    std::vector<const void*> x_;
    std::vector<float> sums_;
};

}  // namespace
#endif

bool int8_linear_is_usable() {
    for (const Path* path : usable_paths())
        if (!std::strcmp(path->name, "avx512_bf16")) return true;
    return false;
}

void run_int8_linear(const Int8Linear& call) {
#ifdef MOE4_HAVE_AVX512_BF16
    // As many tokens at a time as a tile of the experts: their elements stay in the last cache while all rows go by.
    const int64_t blocks = (call.tokens + kTileTokens - 1) / kTileTokens;
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * call.tokens / blocks, stop = (block + 1) * call.tokens / blocks;
        Product(call, first, stop - first).run();
    }
#else
    (void)call;
#endif
}

}  // namespace moe4
