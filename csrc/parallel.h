// How kernels choose their instruction set and split their rows over threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "cpu_features.h"

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

// Below this many elements a thread costs more than it saves.
constexpr int64_t kElementsPerThread = 1 << 16;

// Calls work(begin, end) on pieces of [0, count), one a thread; `elements` is the size of the whole work.
template <typename Work>
void split(int64_t count, int64_t elements, int threads, const Work& work) {
  const int64_t useful = std::max<int64_t>(1, elements / kElementsPerThread);
  const int64_t pieces = std::min<int64_t>({std::max(threads, 1), useful, std::max<int64_t>(count, 1)});
  std::vector<std::thread> others;
  for (int64_t i = 1; i < pieces; ++i) {
    others.emplace_back([&work, count, pieces, i] { work(count * i / pieces, count * (i + 1) / pieces); });
  }
  work(0, count / pieces);
  for (std::thread& thread : others) thread.join();
}

}  // namespace ance_fast
