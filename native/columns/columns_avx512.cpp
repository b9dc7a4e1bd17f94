// AVX-512: sixteen lanes.
#include "loops.h"

namespace moe4 {

const ColumnPath kAvx512Columns{"avx512", solve_rows<16, 2>, search_rows<16>};

}  // namespace moe4
