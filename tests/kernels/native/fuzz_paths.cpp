// libFuzzer's entry: any bytes make a case, and no case may be wrong. `make fuzz` runs it.
#include <cstddef>
#include <cstdint>

#include "check_paths.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    check_case(data, size);
    return 0;
}
