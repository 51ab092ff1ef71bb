// What is behind a large result: memory used before, or pages that nobody has touched yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace ance_fast {

// Whether an array has its pages already: a sample of them. Where that cannot be told, it has not.
inline bool has_pages(const void* array, size_t bytes) {
#if defined(__linux__)
  constexpr size_t kSamples = 8;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  for (size_t i = 0; i < kSamples && bytes > 0; ++i) {
    const uintptr_t at = (reinterpret_cast<uintptr_t>(array) + (bytes - 1) / (kSamples - 1) * i) / page * page;
    unsigned char resident = 0;
    if (mincore(reinterpret_cast<void*>(at), 1, &resident) != 0 || (resident & 1) == 0) return false;
  }
  return true;
#else
  static_cast<void>(array);
  static_cast<void>(bytes);
  return false;
#endif
}

// Asks for huge pages behind an array about to be written as a whole. malloc maps arrays of this size anew each time, and
// a fault for every 4 KB takes longer than writing them. A hint: where it is refused, nothing changes.
inline void advise_huge_pages(void* array, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(array) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(array) + bytes) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(array);
  static_cast<void>(bytes);
#endif
}

// Gives zeroed pages to memory that nobody has written to yet, so that who writes to it first does not wait for them.
inline void fill_with_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE: Linux 5.14, newer than many a C library
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(memory) + bytes;
  if (madvise(reinterpret_cast<void*>(begin), end - begin, kPopulateWrite) == 0) return;
#endif
  std::memset(memory, 0, bytes);
}

}  // namespace ance_fast
