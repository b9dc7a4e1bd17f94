#include "experts.h"

#include <algorithm>
#include <string>
#include <vector>

#include "arranged.h"
#include "numbers.h"
#include "work.h"

namespace moe4 {
namespace {

constexpr int64_t kTileRows = 64;  // rows of one work item at most, or a group: 64 rows of 7168 columns are 224 KiB
constexpr int64_t kDownRows = 128; // of down, where tokens are few: the longer it goes on in one expert, the better
constexpr int64_t kDownSums = 256 << 10;  // bytes of the sums of such an item, at most
constexpr int64_t kMinRows = 32;   // and at least: the number of rows of any matrix is a multiple of this

// --- routing --------------------------------------------------------------------------------------------------------

// The (token, choice) pairs in the order of their expert, then of the token, then of the choice.
struct Routing {
    std::vector<int64_t> chosen;  // experts with at least one pair, ascending
    std::vector<int64_t> begin;   // chosen[i] has the pairs begin[i]..begin[i + 1]
    std::vector<int64_t> token;   // of each pair
    std::vector<float> weight;    // of each pair

    explicit Routing(const Call& call) {
        const int64_t pairs = call.tokens * call.top_k;
        std::vector<int64_t> next(static_cast<size_t>(call.experts), 0);
        for (int64_t i = 0; i < pairs; ++i) {
            const int64_t id = call.ids[i];
            if (id < -1 || id >= call.experts) {
                throw BadIdError("[" + std::to_string(i / call.top_k) + ", " + std::to_string(i % call.top_k) +
                            "]: expected -1 or 0.." + std::to_string(call.experts - 1) + ", found " +
                            std::to_string(id));
            }
            if (id >= 0) ++next[id];
        }
        int64_t total = 0;
        for (int64_t expert = 0; expert < call.experts; ++expert) {
            const int64_t count = next[expert];
            next[expert] = total;
            if (!count) continue;
            chosen.push_back(expert);
            begin.push_back(total);
            total += count;
        }
        begin.push_back(total);
        token.resize(total);
        weight.resize(total);
        for (int64_t i = 0; i < pairs; ++i) {
            if (call.ids[i] < 0) continue;
            const int64_t place = next[call.ids[i]]++;
            token[place] = i / call.top_k;
            weight[place] = call.weights[i];
        }
    }
};

// --- the forward ----------------------------------------------------------------------------------------------------

class Forward {
  public:
    Forward(const Path& path, const Call& call, const Routing& routing)
        : path_(path),
          call_(call),
          routing_(routing),
          threads_(useful_threads(call, static_cast<int64_t>(routing.token.size()))),
          x_elements_(path, call.hidden, call.group_size),
          act_elements_(path, call.inter, call.group_size),
          gate_up_rows_(item_rows(call.inter, static_cast<int64_t>(routing.chosen.size()), kTileRows,
                                  path.arrange_groups ? call.group_size : kMinRows)),
          down_rows_(item_rows(call.hidden, 1, call.tokens * kDownRows * 4 <= kDownSums ? kDownRows : kTileRows,
                               kMinRows)),
          tile_rows_(std::max(gate_up_rows_, down_rows_)),
          tile_tokens_(std::min(kTileTokens, static_cast<int64_t>(routing.token.size()))),
          scratch_floats_(round_up(2 * tile_tokens_ * tile_rows_ + call.tokens * down_rows_ + call.hidden, 16)),
          x_(call.tokens * x_elements_.row_bytes()),
          act_(static_cast<int64_t>(routing.token.size()) * act_elements_.row_bytes()),
          scratch_(threads_ * scratch_floats_ * static_cast<int64_t>(sizeof(float))) {
        for (int64_t token : routing.token) x_rows_.push_back(x_.bytes() + token * x_elements_.row_bytes());
        for (size_t pair = 0; pair < routing.token.size(); ++pair)
            act_rows_.push_back(act_.bytes() + static_cast<int64_t>(pair) * act_elements_.row_bytes());
    }

    void run() {
        const int64_t choices = static_cast<int64_t>(routing_.chosen.size());
        const int64_t work = static_cast<int64_t>(routing_.token.size()) * call_.inter * call_.hidden;
        share(&Forward::arrange_token, call_.tokens, call_.tokens * call_.hidden * kArrangeWork);
        share(&Forward::multiply_gate_up, choices * num_items(call_.inter, gate_up_rows_), 2 * work);
        share(&Forward::multiply_down, num_items(call_.hidden, down_rows_), work);
    }

  private:
    // What to do, what this thread will do after it (-1: nothing), and memory for it.
    using Step = void (Forward::*)(int64_t item, int64_t next, float* scratch);

    static int64_t useful_threads(const Call& call, int64_t pairs) {
        const int64_t work = call.hidden * (3 * pairs * call.inter + call.tokens * kArrangeWork);
        return std::min({static_cast<int64_t>(call.num_threads), kMaxThreads, 1 + work / kThreadWork});
    }

    static int64_t num_items(int64_t rows, int64_t rows_per_item) {
        return (rows + rows_per_item - 1) / rows_per_item;
    }

    // Rows of one item: fewer than `most` where there would be too few items to keep all threads busy to the end.
    int64_t item_rows(int64_t rows, int64_t matrices, int64_t most, int64_t least) const {
        int64_t per_item = std::max(most, least);
        while (per_item > least && matrices * num_items(rows, per_item) < 8 * threads_) per_item /= 2;
        return per_item;
    }

    // Do step(0..count), `work` multiplications in all; each thread takes the next item when it is done with one.
    void share(Step step, int64_t count, int64_t work) {
        const int64_t useful = std::min(count, 1 + work / kThreadWork);
        deal_out<true>(count, static_cast<int>(std::min(threads_, useful)),
                       [&](int64_t slot, int64_t item, int64_t next) {
                           (this->*step)(item, next < count ? next : -1, scratch_.floats() + slot * scratch_floats_);
                       });
    }

    void arrange_token(int64_t token, int64_t, float* scratch) {
        x_elements_.put_row(call_.dtype, call_.x, token, scratch, x_.bytes() + token * x_elements_.row_bytes());
    }

    // Tokens to multiply before the next rows are taken: equal parts of what is left, as a small one would spend its
    // time on decoding.
    static int64_t tile_tokens(int64_t left) {
        const int64_t tiles = (left + kTileTokens - 1) / kTileTokens;
        return (left + tiles - 1) / tiles;
    }

    const ExpertWeights& expert(int64_t choice) const { return call_.weights_of[routing_.chosen[choice]]; }

    template <class T>
    static const char* bytes_of(const T* values) {
        return reinterpret_cast<const char*>(values);
    }

    // Some rows of gate and the same of up, for all tokens of an expert: their part of silu(gate) * up.
    void multiply_gate_up(int64_t item, int64_t next, float* scratch) {
        const int64_t items = num_items(call_.inter, gate_up_rows_);
        const int64_t choice = item / items, first = item % items * gate_up_rows_;
        const int64_t rows = std::min(gate_up_rows_, call_.inter - first);
        const int64_t words = call_.hidden / 8, groups = call_.hidden / call_.group_size;
        const ExpertWeights& weights = expert(choice);
        const uint32_t* gate_rows = weights.gate + first * words;
        const uint32_t* up_rows = weights.up + first * words;
        const uint16_t* gate_scale = weights.gate_scale + first * groups;
        const uint16_t* up_scale = weights.up_scale + first * groups;
        const ExpertWeights& later = expert(next < 0 ? choice : next / items);
        const int64_t later_first = next < 0 ? first : next % items * gate_up_rows_;
        const bool last = first + rows == call_.inter;
        float* gate = scratch;
        float* up = gate + tile_tokens_ * tile_rows_;
        const int64_t end = routing_.begin[choice + 1];
        for (int64_t pair = routing_.begin[choice], tokens; pair < end; pair += tokens) {
            tokens = tile_tokens(end - pair);
            const bool again = pair + tokens < end;  // the same rows follow, for other tokens
            Tile tile{gate_rows, gate_scale, rows, words, words, groups, call_.group_size, &x_rows_[pair], tokens, gate,
                      tile_rows_, bytes_of(up_rows), bytes_of(up_scale)};
            path_.multiply(tile);
            tile.packed = up_rows;
            tile.scale = up_scale;
            tile.y = up;
            tile.next = bytes_of(again ? gate_rows : later.gate + later_first * words);
            tile.next_scale = bytes_of(again ? gate_scale : later.gate_scale + later_first * groups);
            path_.multiply(tile);
            for (int64_t t = 0; t < tokens; ++t) {
                float* g = gate + t * tile_rows_;
                activate(g, up + t * tile_rows_, rows);
                char* row = act_.bytes() + (pair + t) * act_elements_.row_bytes();
                if (last) act_elements_.clear_tail(row);
                act_elements_.put(g, first, rows, row);
            }
        }
    }

    // Some rows of down for all experts: these columns of the output. Experts come in ascending order, so the order
    // in which a token's experts add up depends on its own list alone.
    void multiply_down(int64_t item, int64_t next, float* scratch) {
        const int64_t first = item * down_rows_, rows = std::min(down_rows_, call_.hidden - first);
        const int64_t words = call_.inter / 8, choices = static_cast<int64_t>(routing_.chosen.size());
        float* y = scratch;
        float* sums = y + tile_tokens_ * tile_rows_;
        std::fill_n(sums, call_.tokens * down_rows_, 0.0f);
        for (int64_t choice = 0; choice < choices; ++choice) {
            const uint32_t* packed = expert(choice).down + first * call_.down_stride;
            const uint16_t* scale = expert(choice).down_scale + first * call_.down_scale_stride;
            const bool last = choice + 1 == choices;  // then the first expert's rows of the next item follow
            const ExpertWeights& later = expert(last ? 0 : choice + 1);
            const int64_t later_first = last && next >= 0 ? next * down_rows_ : first;
            const int64_t end = routing_.begin[choice + 1];
            for (int64_t pair = routing_.begin[choice], tokens; pair < end; pair += tokens) {
                tokens = tile_tokens(end - pair);
                const bool again = pair + tokens < end;
                path_.multiply(Tile{packed, scale, rows, words, call_.down_stride, call_.down_scale_stride,
                                    call_.group_size, &act_rows_[pair], tokens, y, tile_rows_,
                                    bytes_of(again ? packed : later.down + later_first * call_.down_stride),
                                    bytes_of(again ? scale
                                                   : later.down_scale + later_first * call_.down_scale_stride)});
                for (int64_t t = 0; t < tokens; ++t) {
                    const float weight = routing_.weight[pair + t];
                    float* sum = sums + routing_.token[pair + t] * down_rows_;
                    for (int64_t r = 0; r < rows; ++r) sum[r] += weight * y[t * tile_rows_ + r];
                }
            }
        }
        for (int64_t token = 0; token < call_.tokens; ++token)
            write_row(call_.dtype, sums + token * down_rows_, token * call_.hidden + first, rows, call_.out);
    }

    const Path& path_;
    const Call& call_;
    const Routing& routing_;
    const int64_t threads_;
    const Arrangement x_elements_, act_elements_;
    const int64_t gate_up_rows_, down_rows_, tile_rows_;
    const int64_t tile_tokens_, scratch_floats_;
    Buffer x_, act_, scratch_;
    std::vector<const void*> x_rows_, act_rows_;  // one a pair
};

}  // namespace

void run_experts(const Path& path, const Call& call) {
    const Routing routing(call);
    const int64_t pairs = static_cast<int64_t>(routing.token.size());
    const int64_t chosen = static_cast<int64_t>(routing.chosen.size());
    // Every 64 rows of weights go through all of an expert's tokens. With more than kTileTokens of them nothing is
    // gained by taking more, and their elements no longer stay in the last cache: so take fewer tokens at a time.
    const int64_t most = std::max<int64_t>(chosen, 1) * kTileTokens;
    const int64_t blocks = std::min(call.tokens, (pairs + most - 1) / most);
    if (blocks <= 1) return Forward(path, call, routing).run();
    const int64_t row_bytes = call.hidden * (call.dtype == Dtype::kF32 ? 4 : 2);
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * call.tokens / blocks;
        Call part = call;
        part.tokens = (block + 1) * call.tokens / blocks - first;
        part.x = static_cast<const char*>(call.x) + first * row_bytes;
        part.out = static_cast<char*>(call.out) + first * row_bytes;
        part.weights += first * call.top_k;
        part.ids += first * call.top_k;
        Forward(path, part, Routing(part)).run();
    }
}

}  // namespace moe4
