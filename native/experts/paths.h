// Which paths this machine can run.
#pragma once

#include <vector>

#include "path.h"

namespace moe4 {

// The paths this machine can run, fastest first; after the portable one those that are taken on request only.
const std::vector<const Path*>& usable_paths();

}  // namespace moe4
