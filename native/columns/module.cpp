// The Python module moe4.gptq._columns. columns.py, its only caller, has checked what the pointers lead to.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "columns.h"
#include "gram.h"
#include "processor.h"
#include "work.h"

namespace nb = nanobind;

namespace moe4 {
namespace {

constexpr int64_t kRowsAtOnce = 64;

// The paths this machine can run, fastest first.
const std::vector<const ColumnPath*>& usable_paths() {
    static const std::vector<const ColumnPath*> paths = [] {
        std::vector<const ColumnPath*> found;
#ifdef MOE4_HAVE_AVX512
        if (processor().avx512) found.push_back(&kAvx512Columns);
#endif
#ifdef MOE4_HAVE_AVX2
        if (processor().avx2) found.push_back(&kAvx2Columns);
#endif
        found.push_back(&kPortableColumns);
        return found;
    }();
    return paths;
}

std::vector<std::string> path_names() {
    std::vector<std::string> names;
    for (const ColumnPath* path : usable_paths()) names.emplace_back(path->name);
    return names;
}

// Rows are dealt out in pieces; what a row comes to does not depend on which thread takes it.
template <class Work>
void run_rows(void (*function)(const Work&, int64_t, int64_t), const Work& work, int num_threads) {
    const int64_t num_pieces = (work.num_rows + kRowsAtOnce - 1) / kRowsAtOnce;
    deal_out(num_pieces, num_threads, [&](int64_t, int64_t piece, int64_t) {
        const int64_t first = piece * kRowsAtOnce;
        function(work, first, std::min(work.num_rows - first, kRowsAtOnce));
    });
}

bool has_bf16() {
    return processor().avx512_bf16;
}

template <class T>
T pointer(uintptr_t address) {
    return reinterpret_cast<T>(address);
}

void solve_block(size_t path, int num_threads, int64_t num_columns, int64_t num_rows, int64_t stride, uintptr_t work,
                 uintptr_t missed, uintptr_t codes, uintptr_t scales, uintptr_t group, uintptr_t factor) {
    const Block block{num_columns, num_rows, stride, pointer<float*>(work), pointer<const float*>(missed),
                      pointer<int8_t*>(codes), pointer<const float*>(scales), pointer<const int64_t*>(group),
                      pointer<const float*>(factor)};
    run_rows(usable_paths().at(path)->solve, block, num_threads);
}

void search_scales(size_t path, int num_threads, int64_t num_rows, int64_t num_groups, int64_t group_size, uintptr_t w,
                   uintptr_t weight, uintptr_t full, uintptr_t factors, int64_t num_factors, float smallest,
                   uintptr_t best) {
    const Search search{num_rows, num_groups, group_size, pointer<const float*>(w), pointer<const float*>(weight),
                        pointer<const float*>(full), pointer<const float*>(factors), num_factors, smallest,
                        pointer<float*>(best)};
    run_rows(usable_paths().at(path)->search, search, num_threads);
}

void add_gram(int num_threads, int64_t num_pairs, int64_t size, uintptr_t panels, uintptr_t total) {
#ifdef MOE4_HAVE_AVX512_BF16
    // Blocks of the lower triangle are dealt out row of panels by row of panels, the longest first.
    const Gram gram{num_pairs, size, pointer<const uint32_t*>(panels), pointer<float*>(total)};
    const int64_t num_panels = (size + kPanelColumns - 1) / kPanelColumns;
    deal_out(num_panels, num_threads, [&](int64_t, int64_t item, int64_t) {
        const int64_t row = num_panels - 1 - item;
        for (int64_t column = 0; column <= row; ++column) add_gram_block(gram, row, column);
    });
#else
    static_cast<void>(num_threads), static_cast<void>(num_pairs), static_cast<void>(size);
    static_cast<void>(panels), static_cast<void>(total);
#endif
}

}  // namespace
}  // namespace moe4

NB_MODULE(_columns, module) {
    module.attr("MAX_COLUMNS") = moe4::kMaxColumns;
    module.attr("PANEL_COLUMNS") = moe4::kPanelColumns;
    module.def("has_bf16", &moe4::has_bf16, "Whether add_gram can run here.");
    module.def("add_gram", &moe4::add_gram, nb::call_guard<nb::gil_scoped_release>(), nb::kw_only(),
               nb::arg("num_threads"), nb::arg("num_pairs"), nb::arg("size"), nb::arg("panels"), nb::arg("total"),
               "Add x^T x on checked pointers; only where has_bf16().");
    module.def("path_names", &moe4::path_names, "Names of the paths this machine can run, fastest first.");
    module.def("solve_block", &moe4::solve_block, nb::call_guard<nb::gil_scoped_release>(), nb::arg("path"),
               nb::kw_only(), nb::arg("num_threads"), nb::arg("num_columns"), nb::arg("num_rows"), nb::arg("stride"),
               nb::arg("work"), nb::arg("missed"), nb::arg("codes"), nb::arg("scales"), nb::arg("group"),
               nb::arg("factor"), "Round a block's columns on checked pointers.");
    module.def("search_scales", &moe4::search_scales, nb::call_guard<nb::gil_scoped_release>(), nb::arg("path"),
               nb::kw_only(), nb::arg("num_threads"), nb::arg("num_rows"), nb::arg("num_groups"),
               nb::arg("group_size"), nb::arg("w"), nb::arg("weight"), nb::arg("full"), nb::arg("factors"),
               nb::arg("num_factors"), nb::arg("smallest"), nb::arg("best"),
               "Search the scales of all groups on checked pointers.");
}
