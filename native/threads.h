// Run a function on several threads, on the OpenMP runtime the process already has.
#pragma once

#include <cstdint>

namespace moe4 {

// Call function(data) on at most num_threads threads at once, this one among them, and return when all are done. The
// function must not throw, and must do all the work however many threads it is given.
//
// The threads are those of the OpenMP runtime that is already loaded (torch brings one), found at run time: a server
// may have bound these threads to cores, and threads of our own would inherit the one core of their creator. A process
// without an OpenMP runtime gets std::thread.
void run_on_threads(void (*function)(void*), void* data, int num_threads);

// The runtime's file, or "std::thread".
const char* thread_runtime();

}  // namespace moe4
