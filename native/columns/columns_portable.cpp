// Four lanes, the vectors that GCC and Clang compile for any machine.
#include "loops.h"

namespace moe4 {

const ColumnPath kPortableColumns{"portable", solve_rows<4, 4>, search_rows<4>};

}  // namespace moe4
