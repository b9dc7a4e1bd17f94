// Compare int8_linear on a random shape with float64, or end the program.
#pragma once

#include <cstdint>

// Returns how many results agreed; none where the machine cannot run it.
int64_t check_int8_linear(unsigned seed);
