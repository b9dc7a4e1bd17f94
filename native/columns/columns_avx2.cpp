// AVX2 and FMA: eight lanes.
#include "loops.h"

namespace moe4 {

const ColumnPath kAvx2Columns{"avx2", solve_rows<8, 2>, search_rows<8>};

}  // namespace moe4
