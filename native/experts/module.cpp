// The Python module moe4.kernels._experts. op.py, its only caller, has checked what the pointers lead to.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <vector>

#include "experts.h"
#include "int4_linear.h"
#include "int8_linear.h"
#include "paths.h"
#include "read.h"
#include "threads.h"

namespace nb = nanobind;

namespace moe4 {
namespace {

std::vector<std::string> path_names() {
    std::vector<std::string> names;
    for (const Path* path : usable_paths()) names.emplace_back(path->name);
    return names;
}

template <class T>
T pointer(uintptr_t address) {
    return reinterpret_cast<T>(address);
}

void run(size_t path, int64_t tokens, int64_t hidden, int64_t inter, int64_t experts, int64_t top_k, int group_size,
         int num_threads, int dtype, uintptr_t x, uintptr_t out, uintptr_t w13, uintptr_t w13_scale, uintptr_t w2,
         uintptr_t w2_scale, uintptr_t weights, uintptr_t ids) {
    const int64_t gate_words = inter * (hidden / 8), gate_scales = inter * (hidden / group_size);
    const int64_t down_words = hidden * (inter / 8), down_scales = hidden * (inter / group_size);
    std::vector<ExpertWeights> table;
    for (int64_t e = 0; e < experts; ++e) {
        const uint32_t* gate = pointer<const uint32_t*>(w13) + 2 * e * gate_words;
        const uint16_t* gate_scale = pointer<const uint16_t*>(w13_scale) + 2 * e * gate_scales;
        table.push_back({gate, gate + gate_words, pointer<const uint32_t*>(w2) + e * down_words,
                         gate_scale, gate_scale + gate_scales, pointer<const uint16_t*>(w2_scale) + e * down_scales});
    }
    const Call call{tokens, hidden, inter, experts, top_k, group_size, num_threads, static_cast<Dtype>(dtype),
                    pointer<const void*>(x), pointer<void*>(out), table.data(), inter / 8, inter / group_size,
                    pointer<const float*>(weights), pointer<const int64_t*>(ids)};
    run_experts(*usable_paths().at(path), call);
}

// The same with experts anywhere in memory: `table` has six addresses an expert, in the order of ExpertWeights.
void run_scattered(size_t path, int64_t tokens, int64_t hidden, int64_t inter, int64_t experts, int64_t top_k,
                   int group_size, int num_threads, int dtype, uintptr_t x, uintptr_t out, uintptr_t table,
                   int64_t down_stride, int64_t down_scale_stride, uintptr_t weights, uintptr_t ids) {
    static_assert(sizeof(ExpertWeights) == 6 * sizeof(int64_t), "the table's rows are six 64-bit addresses");
    const Call call{tokens, hidden, inter, experts, top_k, group_size, num_threads, static_cast<Dtype>(dtype),
                    pointer<const void*>(x), pointer<void*>(out), pointer<const ExpertWeights*>(table),
                    down_stride, down_scale_stride, pointer<const float*>(weights), pointer<const int64_t*>(ids)};
    run_experts(*usable_paths().at(path), call);
}

void int4_linear(size_t path, int64_t tokens, int64_t rows, int64_t columns, int group_size, int num_threads, int dtype,
                 uintptr_t x, uintptr_t packed, uintptr_t scales, uintptr_t out) {
    run_int4_linear(*usable_paths().at(path),
                    {tokens, rows, columns, group_size, num_threads, static_cast<Dtype>(dtype), pointer<const void*>(x),
                     pointer<const uint32_t*>(packed), pointer<const uint16_t*>(scales), pointer<void*>(out)});
}

void int8_linear(int64_t tokens, int64_t rows, int64_t columns, int num_threads, uintptr_t x, uintptr_t codes,
                 uintptr_t scales, uintptr_t out) {
    run_int8_linear({pointer<const uint16_t*>(x), pointer<const int8_t*>(codes), pointer<const uint16_t*>(scales),
                     pointer<uint16_t*>(out), tokens, rows, columns, num_threads});
}

uint64_t read_tensors(const std::vector<uintptr_t>& addresses, const std::vector<int64_t>& sizes, int num_threads) {
    std::vector<Range> ranges;
    for (size_t i = 0; i < addresses.size(); ++i) ranges.push_back({pointer<const char*>(addresses[i]), sizes.at(i)});
    return read_memory(ranges.data(), static_cast<int64_t>(ranges.size()), num_threads);
}

}  // namespace
}  // namespace moe4

NB_MODULE(_experts, module) {
    nb::exception<moe4::BadIdError>(module, "BadIdError", PyExc_IndexError);
    module.attr("BF16") = static_cast<int>(moe4::Dtype::kBf16);
    module.attr("F16") = static_cast<int>(moe4::Dtype::kF16);
    module.attr("F32") = static_cast<int>(moe4::Dtype::kF32);
    module.def("path_names", &moe4::path_names, "Names of the paths this machine can run, fastest first.");
    module.def("thread_runtime", &moe4::thread_runtime, "The OpenMP library in use, or std::thread.");
    module.def("run", &moe4::run, nb::call_guard<nb::gil_scoped_release>(), nb::arg("path"), nb::kw_only(),
               nb::arg("tokens"), nb::arg("hidden"), nb::arg("inter"), nb::arg("experts"), nb::arg("top_k"),
               nb::arg("group_size"), nb::arg("num_threads"), nb::arg("dtype"), nb::arg("x"), nb::arg("out"),
               nb::arg("w13"), nb::arg("w13_scale"), nb::arg("w2"), nb::arg("w2_scale"), nb::arg("weights"),
               nb::arg("ids"), "Run the forward on checked pointers. Raises BadIdError.");
    module.def("run_scattered", &moe4::run_scattered, nb::call_guard<nb::gil_scoped_release>(), nb::arg("path"),
               nb::kw_only(), nb::arg("tokens"), nb::arg("hidden"), nb::arg("inter"), nb::arg("experts"),
               nb::arg("top_k"), nb::arg("group_size"), nb::arg("num_threads"), nb::arg("dtype"), nb::arg("x"),
               nb::arg("out"), nb::arg("table"), nb::arg("down_stride"), nb::arg("down_scale_stride"),
               nb::arg("weights"), nb::arg("ids"), "The same, each expert where a table says. Raises BadIdError.");
    module.def("read_tensors", &moe4::read_tensors, nb::call_guard<nb::gil_scoped_release>(), nb::kw_only(),
               nb::arg("addresses"), nb::arg("sizes"), nb::arg("num_threads"),
               "The exclusive or of all whole 64-bit words at these addresses.");
    module.def("int4_linear", &moe4::int4_linear, nb::call_guard<nb::gil_scoped_release>(), nb::arg("path"),
               nb::kw_only(), nb::arg("tokens"), nb::arg("rows"), nb::arg("columns"), nb::arg("group_size"),
               nb::arg("num_threads"), nb::arg("dtype"), nb::arg("x"), nb::arg("packed"), nb::arg("scales"),
               nb::arg("out"), "One INT4 matrix times the rows of x, on checked pointers.");
    module.def("int8_linear_is_usable", &moe4::int8_linear_is_usable, "Whether this machine can run int8_linear.");
    module.def("int8_linear", &moe4::int8_linear, nb::call_guard<nb::gil_scoped_release>(), nb::kw_only(),
               nb::arg("tokens"), nb::arg("rows"), nb::arg("columns"), nb::arg("num_threads"), nb::arg("x"),
               nb::arg("codes"), nb::arg("scales"), nb::arg("out"), "x (codes * scales)^T on checked pointers.");
}
