// What the tests see and steer of a device that copies; it outlives the ring.
#pragma once

#include <atomic>
#include <cstdint>

namespace ance_fast {

// What a copy takes on the clock of these devices, which nothing else moves but waiting: a second a wait.
constexpr double kSecondsPerByte = 1e-9;

struct CopyLog {
  std::atomic<int64_t> asked{0}, made{0}, locked{0};
  std::atomic<int64_t> bytes{0};  // of the copies made
  std::atomic<bool> paused{false};
};

}  // namespace ance_fast
