// Which instruction set the CPU kernels run with.
#pragma once

#include <string>
#include <vector>

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
