#include "threads.h"

#include <dlfcn.h>

#include <cstring>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <link.h>
#endif

namespace moe4 {
namespace {

// GCC's OpenMP entry; LLVM's and Intel's runtimes export it too.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

struct Runtime {
    GompParallel parallel = nullptr;
    std::string name = "std::thread";
};

GompParallel find_symbol(void* library) {
    return reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
}

#ifdef __linux__
// Look into one loaded library; return nonzero to stop.
int visit_library(dl_phdr_info* info, size_t, void* found) {
    const char* slash = std::strrchr(info->dlpi_name, '/');
    const std::string file = slash ? slash + 1 : info->dlpi_name;
    for (const char* prefix : {"libgomp", "libiomp5", "libomp"}) {
        if (file.rfind(prefix, 0) != 0) continue;
        void* library = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
        if (!library) continue;
        if (GompParallel parallel = find_symbol(library)) {
            *static_cast<Runtime*>(found) = {parallel, info->dlpi_name};
            return 1;
        }
        dlclose(library);
    }
    return 0;
}
#endif

Runtime find_runtime() {
    Runtime runtime;
    if (GompParallel parallel = find_symbol(RTLD_DEFAULT)) {
        runtime.parallel = parallel;
        Dl_info info;
        runtime.name = dladdr(reinterpret_cast<void*>(parallel), &info) ? info.dli_fname : "OpenMP";
        return runtime;
    }
#ifdef __linux__
    dl_iterate_phdr(visit_library, &runtime);
#endif
    return runtime;
}

const Runtime& runtime() {
    static const Runtime found = find_runtime();
    return found;
}

}  // namespace

void run_on_threads(void (*function)(void*), void* data, int num_threads) {
    if (num_threads == 1) {
        function(data);
    } else if (runtime().parallel) {
        runtime().parallel(function, data, static_cast<unsigned>(num_threads), 0);
    } else {
        std::vector<std::thread> threads;
        try {
            for (int i = 1; i < num_threads; ++i) threads.emplace_back(function, data);
        } catch (const std::system_error&) {
            // The system gives no more threads: those we have do all the work.
        }
        function(data);
        for (std::thread& thread : threads) thread.join();
    }
}

const char* thread_runtime() { return runtime().name.c_str(); }

}  // namespace moe4
