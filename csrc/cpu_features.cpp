#include "cpu_features.h"

#include <stdexcept>

namespace ance_fast {

#if defined(__x86_64__)
// __builtin_cpu_supports also checks that the operating system saves the wider registers.
Isa best_isa() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
  return Isa::kScalar;
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
  if (__builtin_cpu_supports("avx2")) found.emplace_back("avx2");
  if (__builtin_cpu_supports("fma")) found.emplace_back("fma");
  if (__builtin_cpu_supports("avx512f")) found.emplace_back("avx512f");
  if (__builtin_cpu_supports("avx512dq")) found.emplace_back("avx512dq");
  if (__builtin_cpu_supports("avx512vl")) found.emplace_back("avx512vl");
  if (__builtin_cpu_supports("avx512vnni")) found.emplace_back("avx512vnni");
  if (__builtin_cpu_supports("avx512bf16")) found.emplace_back("avx512bf16");
  return found;
}
#else
Isa best_isa() { return Isa::kScalar; }

std::vector<std::string> cpu_features() { return {}; }
#endif

Isa parse_isa(const std::string& name) {
  if (name == "auto") return best_isa();
  Isa wanted;
  if (name == "scalar") {
    wanted = Isa::kScalar;
  } else if (name == "avx2") {
    wanted = Isa::kAvx2;
  } else if (name == "avx512") {
    wanted = Isa::kAvx512;
  } else {
    throw std::invalid_argument("isa is '" + name + "'; it must be auto, avx512, avx2 or scalar");
  }
  if (static_cast<int>(wanted) > static_cast<int>(best_isa())) {
    throw std::invalid_argument("isa '" + name + "' is not supported by this CPU; the best it has is '" +
                                isa_name(best_isa()) + "'");
  }
  return wanted;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx2: return "avx2";
    default: return "scalar";
  }
}

}  // namespace ance_fast
