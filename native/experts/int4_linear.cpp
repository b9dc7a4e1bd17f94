#include "int4_linear.h"

#include <algorithm>
#include <vector>

#include "arranged.h"
#include "work.h"

namespace moe4 {
namespace {

constexpr int64_t kMostRows = 64;   // rows of one work item, as of the experts' gate and up,
constexpr int64_t kLeastRows = 32;  // or so many where there would be too few items to keep all threads busy to the end

// Some tokens' products with all rows.
class Int4Product {
  public:
    Int4Product(const Path& path, const Int4Linear& call, int64_t first, int64_t tokens)
        : path_(path),
          call_(call),
          first_(first),
          tokens_(tokens),
          threads_(std::min({static_cast<int64_t>(call.num_threads), kMaxThreads, 1 + work() / kThreadWork})),
          item_rows_(call.rows / kMostRows < 8 * threads_ ? kLeastRows : kMostRows),
          items_((call.rows + item_rows_ - 1) / item_rows_),
          scratch_floats_(round_up(std::max(tokens * item_rows_, call.columns), 16)),
          elements_(path, call.columns, call.group_size),
          x_(tokens * elements_.row_bytes()),
          scratch_(threads_ * scratch_floats_ * static_cast<int64_t>(sizeof(float))) {
        for (int64_t t = 0; t < tokens; ++t) rows_of_x_.push_back(x_.bytes() + t * elements_.row_bytes());
    }

    void run() {
        const int64_t arranging = 1 + tokens_ * call_.columns * kArrangeWork / kThreadWork;
        deal_out(tokens_, static_cast<int>(std::min({threads_, tokens_, arranging})),
                 [this](int64_t slot, int64_t token, int64_t) {
                     elements_.put_row(call_.dtype, call_.x, first_ + token, scratch(slot),
                                       x_.bytes() + token * elements_.row_bytes());
                 });
        deal_out<true>(items_, static_cast<int>(std::min(threads_, items_)),
                       [this](int64_t slot, int64_t item, int64_t next) {
                           multiply(item, next < items_ ? next : item, scratch(slot));
                       });
    }

  private:
    int64_t work() const { return tokens_ * call_.columns * (call_.rows + kArrangeWork); }
    float* scratch(int64_t slot) const { return scratch_.floats() + slot * scratch_floats_; }
    const uint32_t* packed(int64_t item) const { return call_.packed + item * item_rows_ * (call_.columns / 8); }
    const uint16_t* scales(int64_t item) const {
        return call_.scales + item * item_rows_ * (call_.columns / call_.group_size);
    }

    void multiply(int64_t item, int64_t next, float* sums) const {
        const int64_t row = item * item_rows_, rows = std::min(item_rows_, call_.rows - row);
        const int64_t words = call_.columns / 8, groups = call_.columns / call_.group_size;
        path_.multiply(Tile{packed(item), scales(item), rows, words, words, groups, call_.group_size,
                            rows_of_x_.data(), tokens_, sums, item_rows_,
                            reinterpret_cast<const char*>(packed(next)),
                            reinterpret_cast<const char*>(scales(next))});
        for (int64_t t = 0; t < tokens_; ++t)
            write_row(call_.dtype, sums + t * item_rows_, (first_ + t) * call_.rows + row, rows, call_.out);
    }

    const Path& path_;
    const Int4Linear& call_;
    const int64_t first_, tokens_, threads_, item_rows_, items_, scratch_floats_;
    const Arrangement elements_;
    const Buffer x_, scratch_;
    std::vector<const void*> rows_of_x_;
};

}  // namespace

void run_int4_linear(const Path& path, const Int4Linear& call) {
    // As many tokens at a time as a tile of the experts: their elements stay in the last cache while all rows go by.
    const int64_t blocks = (call.tokens + kTileTokens - 1) / kTileTokens;
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * call.tokens / blocks, stop = (block + 1) * call.tokens / blocks;
        Int4Product(path, call, first, stop - first).run();
    }
}

}  // namespace moe4
