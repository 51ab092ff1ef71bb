// What the tests see and steer of a device that copies; it outlives the ring.
#pragma once

#include <atomic>
#include <cstdint>

namespace ance_fast {

struct CopyLog {
  std::atomic<int64_t> asked{0}, made{0}, locked{0};
  std::atomic<bool> paused{false};
};

}  // namespace ance_fast
