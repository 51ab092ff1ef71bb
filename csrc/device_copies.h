// Copies that a device makes into host memory while the host goes on, as the embedding ring needs them. The form for
// CUDA is in cuda/ring_copies.h; tests have one whose copies finish in a thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace ance_fast {

// Rows in the memory of a device.
struct DeviceSource {
  const void* address;
  int device;                   // its number
  void* stream;                 // of that device: the copy follows what this stream has been given so far
  std::shared_ptr<void> owner;  // keeps the rows, and whoever allocates from handing them out, until they are copied
};

// Calls about different slots may come from different threads at once; copy() is called for a slot by one thread.
class DeviceCopies {
 public:
  virtual ~DeviceCopies() = default;

  // Page-locks memory, so that a device can write to it without the host. Throws std::runtime_error.
  virtual void lock_pages(void* memory, size_t bytes) = 0;
  virtual void unlock_pages(void* memory) noexcept = 0;

  // Queues a copy and returns. Throws std::runtime_error; the copy may then have begun all the same.
  virtual void copy(int64_t slot, void* to, const DeviceSource& source, size_t bytes) = 0;
  // Whether all copies queued for the slot have been made; one that has none is done. Does not wait. Throws
  // std::runtime_error once a copy has failed.
  virtual bool done(int64_t slot) = 0;
  // Seconds that the device spent on the copies found done so far, each counted once; waiting is not copying.
  virtual double seconds() = 0;
  // Waits for every copy, failed ones too: after this none will touch memory.
  virtual void finish() noexcept = 0;
};

}  // namespace ance_fast
