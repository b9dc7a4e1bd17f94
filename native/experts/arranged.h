// Activations as a path reads them: arranged rows, in memory on a cache line's boundary. For files that call paths;
// these are compiled for any machine of their architecture.
#pragma once

#include <cstdint>
#include <new>

#include "numbers.h"
#include "path.h"

namespace moe4 {

constexpr int64_t kArrangeWork = 32;  // arranging an element takes the time of so many multiplications

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Uninitialized memory on a cache line's boundary.
class Buffer {
  public:
    explicit Buffer(int64_t bytes) : data_(::operator new(static_cast<size_t>(bytes), std::align_val_t(64))) {}
    ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    char* bytes() const { return static_cast<char*>(data_); }
    float* floats() const { return static_cast<float*>(data_); }

  private:
    void* data_;
};

// How a path wants rows of so many columns.
class Arrangement {
  public:
    Arrangement(const Path& path, int64_t columns, int group_size)
        : path_(path), columns_{columns, group_size}, row_bytes_(padded_bytes(path, columns_)) {}

    int64_t row_bytes() const { return row_bytes_; }

    // Put some columns at their places in a row.
    void put(const float* src, int64_t first, int64_t count, char* row) const {
        if (path_.arrange_groups) path_.arrange_groups(src, first, count, columns_, row);
        else path_.arrange(src, first, count, row);
    }

    // Arrange a whole row of x [.., columns]; `floats` has room for one.
    void put_row(Dtype dtype, const void* x, int64_t row, float* floats, char* arranged) const {
        read_row(dtype, x, row * columns_.count, columns_.count, floats);
        clear_tail(arranged);
        put(floats, 0, columns_.count, arranged);
    }

    // Zero the places beyond the columns, where a path reads them.
    void clear_tail(char* row) const {
        const int64_t tail = round_up(columns_.count, kLineCodes) - columns_.count;
        if (!path_.arrange || !tail) return;
        const float zeros[kLineCodes] = {};
        path_.arrange(zeros, columns_.count, tail, row);
    }

  private:
    // Whole lines, and not a multiple of 512 bytes: rows so far apart would compete for few places in a cache.
    static int64_t padded_bytes(const Path& path, const Columns& columns) {
        const int64_t extra = columns.count / columns.group_size * path.group_bytes;
        const int64_t bytes = round_up(round_up(columns.count, kLineCodes) * path.x_bytes + extra, 256);
        return bytes % 512 ? bytes : bytes + 256;
    }

    const Path& path_;
    const Columns columns_;
    const int64_t row_bytes_;
};

}  // namespace moe4
