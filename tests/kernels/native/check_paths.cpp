#include "check_paths.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "experts.h"
#include "int4_linear.h"
#include "paths.h"

namespace {

using moe4::Dtype;

constexpr double kU32 = 0x1p-24, kU16 = 0x1p-8, kU11 = 0x1p-11;  // unit roundoff of float32, bfloat16, float16
constexpr int64_t kWork = 1 << 20;  // products of a case, at most: float64 and sanitizers are slow

// Bytes first, then zeros.
class Choices {
  public:
    Choices(const uint8_t* data, size_t size) : data_(data), size_(size) {}
    uint64_t next(uint64_t count) {
        uint64_t value = 0;
        for (uint64_t range = count - 1; range; range >>= 8) {
            value = value << 8 | (place_ < size_ ? data_[place_] : 0);
            ++place_;
        }
        return value % count;
    }

  private:
    const uint8_t* data_;
    size_t size_, place_ = 0;
};

class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
    uint64_t bits() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        uint64_t x = state_;
        x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
        return x ^ x >> 32;
    }
    double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-52 - 1; }  // -1..1

  private:
    uint64_t state_;
};

// Memory of exactly `count` elements that begins `offset` bytes after a 64-byte boundary: a byte more is a fault.
template <class T>
class Block {
  public:
    Block(int64_t count, int64_t offset)
        : memory_(static_cast<char*>(::operator new(count * sizeof(T) + offset, std::align_val_t(64)))),
          first_(reinterpret_cast<T*>(memory_.get() + offset)),
          count_(count) {}
    T* data() const { return first_; }
    T& operator[](int64_t i) const { return first_[i]; }
    int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }

  private:
    struct Free {
        void operator()(char* p) const { ::operator delete(p, std::align_val_t(64)); }
    };
    std::unique_ptr<char, Free> memory_;
    T* first_;
    int64_t count_;
};

double bf16_value(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

double f16_value(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double size = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
    return bits & 0x8000 ? -size : size;
}

int64_t element_bytes(Dtype dtype) { return dtype == Dtype::kF32 ? 4 : 2; }

double element(Dtype dtype, const char* data, int64_t i) {
    if (dtype == Dtype::kF32) return reinterpret_cast<const float*>(data)[i];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[i];
    return dtype == Dtype::kBf16 ? bf16_value(bits) : f16_value(bits);
}

void set_element(Dtype dtype, char* data, int64_t i, double value) {
    if (dtype == Dtype::kF32) {
        reinterpret_cast<float*>(data)[i] = static_cast<float>(value);
        return;
    }
    // bfloat16: cut off. float16: sixteenths from -4 to 4, of which each has its own.
    uint16_t bits;
    if (dtype == Dtype::kBf16) {
        const float single = static_cast<float>(value);
        uint32_t wide;
        std::memcpy(&wide, &single, sizeof wide);
        bits = static_cast<uint16_t>(wide >> 16);
    } else {
        const double size = std::round(std::fabs(value) * 64) / 64;
        int exponent;
        std::frexp(size, &exponent);
        const int mantissa = size ? static_cast<int>(std::ldexp(size, 11 - exponent)) - 1024 : 0;
        bits = static_cast<uint16_t>((value < 0) << 15 | (size ? exponent + 14 : 0) << 10 | mantissa);
    }
    reinterpret_cast<uint16_t*>(data)[i] = bits;
}

// A matrix [rows, columns], its rows `stride` columns apart, as the kernel reads it.
struct Matrix {
    int64_t rows, columns, stride, group;
    Block<uint32_t> packed;
    Block<uint16_t> scale;

    Matrix(int64_t rows, int64_t columns, int64_t stride, int64_t group, int64_t offset, Random& random)
        : rows(rows), columns(columns), stride(stride), group(group),
          packed(((rows - 1) * stride + columns) / 8, offset * 4),
          scale(((rows - 1) * stride + columns) / group, offset * 2) {
        for (int64_t i = 0; i < packed.bytes() / 4; ++i) packed[i] = static_cast<uint32_t>(random.bits() >> 32);
        for (int64_t i = 0; i < scale.bytes() / 2; ++i) {
            const double value = random.bits() % 16 ? random.uniform() / (2.7 * std::sqrt(double(columns))) : 0;
            set_element(Dtype::kBf16, reinterpret_cast<char*>(scale.data()), i, value);
        }
    }

    // As a decoded checkpoint holds it if `rounded`: in bfloat16.
    double weight(int64_t row, int64_t column, bool rounded) const {
        const uint32_t word = packed[(row * stride + column) / 8];
        const int code = static_cast<int>(word >> (column % 8 * 4) & 15) - 8;
        const double exact = code * bf16_value(scale[(row * stride + column) / group]);
        if (!rounded || exact == 0) return exact;
        int exponent;
        const double fraction = std::frexp(exact, &exponent);  // eight bits of which are kept
        return std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
    }
};

struct Expert {
    Matrix gate, up, down;
};

// A sum and the sum of its terms' magnitudes.
struct Sum {
    double value = 0, size = 0;
};

Sum product(const Matrix& matrix, int64_t row, const std::vector<double>& x, const std::vector<double>& size,
            bool rounded) {
    Sum sum;
    for (int64_t k = 0; k < matrix.columns; ++k) {
        const double weight = matrix.weight(row, k, rounded);
        sum.value += weight * x[k];
        sum.size += std::fabs(weight) * size[k];
    }
    return sum;
}

struct Bound {
    std::vector<double> value, error;
};

// What a path rounds activations to: bfloat16, or integers, for which the largest of each group counts.
enum class Rounding { kNone, kBf16, kInt16, kInt8 };

Rounding rounding_of(const moe4::Path& path) {
    if (path.arrange_groups) return path.x_bytes == 1 ? Rounding::kInt8 : Rounding::kInt16;
    return path.x_bytes == 2 ? Rounding::kBf16 : Rounding::kNone;
}

struct Case {
    int64_t tokens, hidden, inter, group, down_stride, top_k;
    Dtype dtype;
    std::vector<Expert> experts;
    std::vector<float> weights;
    std::vector<int64_t> ids;
    std::vector<double> x;

    // How far a path may move activations when it rounds them.
    std::vector<double> rounding(const std::vector<double>& size, Rounding to) const {
        std::vector<double> error(size.size(), 0.0);
        for (size_t i = 0; i < size.size() && to != Rounding::kNone; ++i) {
            const auto first = size.begin() + static_cast<int64_t>(i) / group * group;
            const double steps = to == Rounding::kInt8 ? 253 : 64000;
            error[i] = to == Rounding::kBf16 ? kU16 * size[i] : *std::max_element(first, first + group) / steps + 0x1p-100;
        }
        return error;
    }

    // What float64 gives, and how far off arithmetic in float32 (and what a path rounds the activations to) may lie:
    // the analysis of tests/kernels/expert_cases.py. Arm's bfdot rounds with up to twice the unit.
    Bound expected(Rounding to, bool round_weights) const {
        Bound bound{std::vector<double>(tokens * hidden, 0.0), std::vector<double>(tokens * hidden, 0.0)};
        const double dot2 = (chain() + inter / 32.0) * kU32;
        for (int64_t i = 0; i < tokens * top_k; ++i) {
            if (ids[i] < 0) continue;
            const Expert& expert = experts[ids[i]];
            const auto first = x.begin() + i / top_k * hidden;
            const std::vector<double> row(first, first + hidden);
            const std::vector<double> row_reach = reach_of(row, to);
            std::vector<double> act(inter), act_size(inter), most(inter), reach(inter);
            for (int64_t r = 0; r < inter; ++r) {
                const Sum gate = product(expert.gate, r, row, row_reach, round_weights);
                const Sum up = product(expert.up, r, row, row_reach, round_weights);
                const double s = gate.value / (1 + std::exp(-gate.value));
                const double s_error = 1.1 * gate.size + 8 * kU32 * std::fabs(s);
                act[r] = s * up.value;
                act_size[r] = std::fabs(act[r]);
                most[r] = act_size[r] + std::fabs(up.value) * s_error + std::fabs(s) * up.size + s_error * up.size +
                          kU32 * act_size[r];
            }
            const std::vector<double> rounded = rounding(most, to);
            for (int64_t r = 0; r < inter; ++r)
                reach[r] = most[r] - act_size[r] + rounded[r] + dot2 * (most[r] + rounded[r]);
            for (int64_t r = 0; r < hidden; ++r) {
                const Sum y = product(expert.down, r, act, act_size, round_weights);
                const Sum e = product(expert.down, r, act, reach, round_weights);
                const int64_t place = i / top_k * hidden + r;
                bound.value[place] += weights[i] * y.value;
                bound.error[place] += std::fabs(weights[i]) * (e.size + (top_k + 1) * kU32 * y.size);
            }
        }
        for (size_t i = 0; i < bound.error.size(); ++i) bound.error[i] += rounding_of_result(bound.value[i], bound.error[i]);
        return bound;
    }

    // The same for int4_linear with the first expert's gate.
    Bound expected_linear(Rounding to, bool round_weights) const {
        Bound bound;
        for (int64_t t = 0; t < tokens; ++t) {
            const std::vector<double> row(x.begin() + t * hidden, x.begin() + (t + 1) * hidden);
            const std::vector<double> reach = reach_of(row, to);
            for (int64_t r = 0; r < inter; ++r) {
                const Sum y = product(experts[0].gate, r, row, reach, round_weights);
                bound.value.push_back(y.value);
                bound.error.push_back(y.size + rounding_of_result(y.value, y.size));
            }
        }
        return bound;
    }

  private:
    double chain() const { return 2 * (group + 18); }

    // How far off a product of each element with a weight of 1 may be: what x is off, and what products and sums add.
    std::vector<double> reach_of(const std::vector<double>& row, Rounding to) const {
        std::vector<double> size(row);
        for (double& value : size) value = std::fabs(value);
        std::vector<double> reach =
            rounding(size, to == Rounding::kBf16 && dtype == Dtype::kBf16 ? Rounding::kNone : to);
        const double dot = (chain() + hidden / 32.0) * kU32;
        for (int64_t k = 0; k < hidden; ++k) reach[k] += dot * (size[k] + reach[k]);
        return reach;
    }

    // What is lost when a result that is off by `error` is rounded to the call's dtype.
    double rounding_of_result(double value, double error) const {
        const double unit = dtype == Dtype::kBf16 ? kU16 : dtype == Dtype::kF16 ? kU11 : kU32;
        return unit * (std::fabs(value) + error) + 0x1p-25;
    }
};

[[noreturn]] void fail(const Case& c, const char* path, const char* what) {
    std::fprintf(stderr, "%s: %s: %ld tokens, hidden %ld, inter %ld, stride %ld, group %ld, top_k %ld, dtype %d\n", path,
                 what, long(c.tokens), long(c.hidden), long(c.inter), long(c.down_stride), long(c.group), long(c.top_k),
                 int(c.dtype));
    std::abort();
}

// int4_linear on the first expert's gate: near float64, and a token alone gets the same bits.
int64_t check_linear(const Case& c, const moe4::Path& path, const char* x, int threads, int64_t offset) {
    const Bound bound = c.expected_linear(rounding_of(path), !std::strcmp(path.name, "avx512_bf16"));
    const Matrix& gate = c.experts[0].gate;
    const int64_t width = element_bytes(c.dtype);
    Block<char> out(c.tokens * c.inter * width, offset * width), alone(c.inter * width, offset * width);
    std::memset(out.data(), 0xff, static_cast<size_t>(out.bytes()));
    moe4::Int4Linear call{c.tokens, c.inter, c.hidden, static_cast<int>(c.group), threads, c.dtype,
                          x, gate.packed.data(), gate.scale.data(), out.data()};
    moe4::run_int4_linear(path, call);
    for (int64_t i = 0; i < c.tokens * c.inter; ++i)
        if (!(std::fabs(element(c.dtype, out.data(), i) - bound.value[i]) <= bound.error[i]))
            fail(c, path.name, "int4_linear is too far from float64");
    if (!c.tokens) return 0;
    call.x = x + (c.tokens - 1) * c.hidden * width;
    call.tokens = call.num_threads = 1;
    call.out = alone.data();
    moe4::run_int4_linear(path, call);
    if (std::memcmp(alone.data(), out.data() + (c.tokens - 1) * c.inter * width, static_cast<size_t>(alone.bytes())))
        fail(c, path.name, "int4_linear gives a token other bits in another batch");
    return c.tokens * c.inter;
}

}  // namespace

int64_t check_case(const uint8_t* data, size_t size) {
    uint64_t seed = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; ++i) seed = (seed ^ data[i]) * 0x100000001b3u;
    Random random(seed);
    Choices choose(data, size);

    Case c;
    c.group = 32 << choose.next(3);
    c.hidden = c.group * static_cast<int64_t>(1 + choose.next(5));
    c.inter = c.group * static_cast<int64_t>(1 + choose.next(5));
    c.down_stride = c.inter + c.group * static_cast<int64_t>(choose.next(3));
    c.top_k = static_cast<int64_t>(1 + choose.next(4));
    c.dtype = static_cast<Dtype>(choose.next(3));
    const int64_t num_experts = static_cast<int64_t>(1 + choose.next(4));
    const int64_t most = std::max<int64_t>(1, kWork / (3 * c.hidden * c.inter * c.top_k));
    c.tokens = static_cast<int64_t>(choose.next(static_cast<uint64_t>(std::min<int64_t>(most, 300) + 1)));
    const int threads = static_cast<int>(1 + choose.next(3));
    const int64_t offset = static_cast<int64_t>(choose.next(16));
    const bool bad_id = choose.next(16) == 15 && c.tokens;
    for (int64_t e = 0; e < num_experts; ++e) {
        c.experts.push_back({Matrix(c.inter, c.hidden, c.hidden, c.group, offset, random),
                             Matrix(c.inter, c.hidden, c.hidden, c.group, offset + 1, random),
                             Matrix(c.hidden, c.inter, c.down_stride, c.group, offset + 2, random)});
    }
    Block<float> weights(c.tokens * c.top_k, offset * 4);
    Block<int64_t> ids(c.tokens * c.top_k, offset * 8);
    for (int64_t i = 0; i < c.tokens * c.top_k; ++i) {
        weights[i] = static_cast<float>(random.uniform());
        ids[i] = static_cast<int64_t>(choose.next(256) ^ random.bits() >> 56) % (num_experts + 1) - 1;
        c.weights.push_back(weights[i]);
        c.ids.push_back(ids[i]);
    }
    const int64_t width = element_bytes(c.dtype);
    Block<char> x(c.tokens * c.hidden * width, offset * width), out(c.tokens * c.hidden * width, offset * width);
    for (int64_t i = 0; i < c.tokens * c.hidden; ++i) {
        set_element(c.dtype, x.data(), i, 4 * random.uniform());
        c.x.push_back(element(c.dtype, x.data(), i));
    }
    std::vector<moe4::ExpertWeights> table;
    for (const Expert& e : c.experts)
        table.push_back({e.gate.packed.data(), e.up.packed.data(), e.down.packed.data(), e.gate.scale.data(),
                         e.up.scale.data(), e.down.scale.data()});
    moe4::Call call{c.tokens, c.hidden, c.inter, num_experts, c.top_k, static_cast<int>(c.group), threads, c.dtype,
                    x.data(), out.data(), table.data(), c.down_stride / 8, c.down_stride / c.group, weights.data(),
                    ids.data()};

    int64_t compared = 0;
    std::map<std::pair<Rounding, bool>, Bound> bounds;  // the same for all paths that round alike
    for (const moe4::Path* path : moe4::usable_paths()) {
        if (bad_id) {
            const int64_t at = static_cast<int64_t>(random.bits() % static_cast<uint64_t>(c.tokens * c.top_k));
            const int64_t kept = ids[at];
            ids[at] = random.bits() % 2 ? num_experts : -2 - static_cast<int64_t>(random.bits() >> 2);
            try {
                moe4::run_experts(*path, call);
                fail(c, path->name, "took an id that is no expert's");
            } catch (const moe4::BadIdError&) {
                ++compared;
            }
            ids[at] = kept;
        }
        const bool rounds_weights = !std::strcmp(path->name, "avx512_bf16");
        Bound& bound = bounds[{rounding_of(*path), rounds_weights}];
        if (bound.value.empty()) bound = c.expected(rounding_of(*path), rounds_weights);
        std::memset(out.data(), 0xff, static_cast<size_t>(out.bytes()));
        moe4::run_experts(*path, call);
        for (int64_t i = 0; i < c.tokens * c.hidden; ++i) {
            if (!(std::fabs(element(c.dtype, out.data(), i) - bound.value[i]) <= bound.error[i]))
                fail(c, path->name, "is too far from float64");
            ++compared;
        }
        compared += check_linear(c, *path, x.data(), threads, offset);
        if (!c.tokens) continue;
        // One token alone, on one thread: the same bits.
        const int64_t token = static_cast<int64_t>(random.bits() % static_cast<uint64_t>(c.tokens));
        Block<char> alone(c.hidden * width, offset * width);
        moe4::Call one = call;
        one.tokens = one.num_threads = 1;
        one.x = x.data() + token * c.hidden * width;
        one.out = alone.data();
        one.weights = weights.data() + token * c.top_k;
        one.ids = ids.data() + token * c.top_k;
        moe4::run_experts(*path, one);
        if (std::memcmp(alone.data(), out.data() + token * c.hidden * width, static_cast<size_t>(alone.bytes())))
            fail(c, path->name, "gives a token other bits in another batch");
    }
    return compared;
}
