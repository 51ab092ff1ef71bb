// Which instruction set the CPU kernels run with.
#pragma once

#include <string>
#include <vector>

// Calls the kernel of the namespace (scalar, avx2 or avx512) that serves `isa`.
#if defined(__x86_64__)
#define ANCE_DISPATCH(isa, call)            \
  switch (isa) {                            \
    case Isa::kAvx512: avx512::call; break; \
    case Isa::kAvx2: avx2::call; break;     \
    default: scalar::call; break;           \
  }
#else
#define ANCE_DISPATCH(isa, call) (static_cast<void>(isa), scalar::call)
#endif

namespace ance_fast {

enum class Isa { kScalar, kAvx2, kAvx512 };

// Best instruction set that this CPU and operating system support.
Isa best_isa();

// "auto", "avx512", "avx2" or "scalar". Throws std::invalid_argument for another name or one this CPU lacks.
Isa parse_isa(const std::string& name);

const char* isa_name(Isa isa);

// Names of the CPU features that matter to the kernels and are present.
std::vector<std::string> cpu_features();

}  // namespace ance_fast
