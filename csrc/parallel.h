// How kernels split their rows over threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace ance_fast {

// Below this many elements a thread costs more than it saves.
constexpr int64_t kElementsPerThread = 1 << 16;

// Calls work(begin, end) on pieces of [0, count), one a thread; `elements` is the size of the whole work. Work may throw:
// the first exception is passed on after every thread has ended. A thread that cannot be started leaves its piece to the
// caller's.
template <typename Work>
void split(int64_t count, int64_t elements, int threads, const Work& work) {
  const int64_t useful = std::max<int64_t>(1, elements / kElementsPerThread);
  const int64_t pieces = std::min<int64_t>({std::max(threads, 1), useful, std::max<int64_t>(count, 1)});
  std::vector<std::exception_ptr> failures(static_cast<size_t>(pieces));
  const auto run = [&](int64_t i) noexcept {
    try {
      work(count * i / pieces, count * (i + 1) / pieces);
    } catch (...) {
      failures[static_cast<size_t>(i)] = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(pieces));
  int64_t started = 1;
  try {
    for (; started < pieces; ++started) others.emplace_back(run, started);
  } catch (const std::system_error&) {
  }
  run(0);
  for (int64_t i = started; i < pieces; ++i) run(i);
  for (std::thread& thread : others) thread.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace ance_fast
