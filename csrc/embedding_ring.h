// Bounded slots of embedding rows between producers and consumers. Every consumer sees every published slot once, in
// the order of publication, and a slot is free again when the last of them has released it: the slowest consumer sets
// the pace of the producers.
//
//   FREE --acquire--> FILLING --publish--> READY --first take--> DRAINING --last release--> FREE
//     ^------------------ abandon
//
// One mutex guards the states and is held for a few instructions only. Rows are written and read outside of it: what
// was written before publish is seen after take, and what was read before release is read before the next acquire.
//
// A device may write rows as well: copy_from_device queues a copy, publish does not wait for it, take does. Nobody gets
// a slot while a copy into it is under way, and the ring outlives all of them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device_copies.h"

namespace ance_fast {

enum class SlotState { kFree, kFilling, kReady, kDraining };

enum class RingResult {
  kDone,
  kTimeout,
  kEnded,   // closed: nothing more may be filled, or nothing more will come
  kFailed,  // fail() was called, which ends everything at once
};

struct RingShape {
  int64_t slots;
  int64_t rows;  // of a slot
  int64_t dim;
  int64_t element_bytes;
  int64_t consumers;
};

// What a published slot holds.
struct SlotContent {
  int64_t rows;
  int64_t tag;
  int64_t sequence;  // 0 for the first slot ever published
};

// All members may be called from any thread. Waits end early when the ring is closed or fails, and a wait that has
// timed out may be repeated: it has taken nothing.
class EmbeddingRing {
 public:
  // All pages are there when it returns. copies: null where no device will fill slots. Throws std::invalid_argument for
  // a size below 1 or one that does not fit an address space, std::bad_alloc, std::runtime_error where page_locked is
  // asked for and refused.
  explicit EmbeddingRing(const RingShape& shape, std::unique_ptr<DeviceCopies> copies = nullptr,
                         bool page_locked = false);
  // Waits for the copies that are under way.
  ~EmbeddingRing();
  EmbeddingRing(const EmbeddingRing&) = delete;
  EmbeddingRing& operator=(const EmbeddingRing&) = delete;

  const RingShape& shape() const { return shape_; }
  bool page_locked() const { return page_locked_; }
  // Rows of a slot, [rows, dim], 64-byte aligned.
  void* data(int64_t slot) const { return memory_.get() + slot * slot_bytes_; }

  // For producers. A slot acquired must be published or abandoned. Publishing to a ring that has failed gives the slot
  // back and returns kFailed; one that has been closed since still takes it, since its consumers wait for it.
  // std::logic_error for a slot that is not being filled, std::invalid_argument for rows outside 1 .. shape().rows.
  RingResult acquire(std::chrono::nanoseconds wait, int64_t* slot);
  RingResult publish(int64_t slot, int64_t rows, int64_t tag);
  // Waits for the copies into the slot, unless the ring has failed: then nobody will get the slot.
  void abandon(int64_t slot);

  // Queues a copy of `rows` rows into a slot that is being filled, from its row `first`, and returns. The source's owner
  // is kept until the copy has been made, and let go of in whatever thread finds that out, never under the mutex. The
  // ring fails when the copy does: at once with std::runtime_error here, or later in whoever waits for the slot.
  // std::logic_error for a slot that is not being filled, std::invalid_argument for rows outside the slot.
  void copy_from_device(int64_t slot, int64_t first, int64_t rows, const DeviceSource& source);

  // For consumers, numbered from 0. Threads that take under one number share its slots among them. A slot taken must be
  // released under the same number. std::out_of_range, std::logic_error for a slot that this consumer does not hold.
  RingResult take(int64_t consumer, std::chrono::nanoseconds wait, int64_t* slot, SlotContent* content);
  void release(int64_t consumer, int64_t slot);

  // Nothing more will be acquired; consumers get what is published or being filled, then kEnded. May be repeated.
  void close();
  // Wakes everybody; from now on acquire, publish and take return kFailed. May be repeated.
  void fail();

  bool closed() const;
  bool failed() const;
  // What the device said of the first copy that failed; empty when none has.
  std::string copy_failure() const;
  // Seconds of copying by the device, of the copies that were waited for; 0 without one.
  double copy_seconds() const;
  std::vector<SlotState> states() const;

 private:
  using Owners = std::vector<std::shared_ptr<void>>;
  struct Slot {
    SlotState state = SlotState::kFree;
    SlotContent content{};
    int64_t unreleased = 0;          // consumers that have yet to release it
    std::vector<unsigned char> held;  // [consumers]
    bool copying = false;             // a copy was queued and nobody has seen yet that it is done
    Owners owners;                    // of the rows that are copied
  };
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };

  void fail_copy(const std::string& reason);
  static void copied(Slot& slot, Owners* finished);
  Slot& filling(int64_t slot, const char* action);
  void check_consumer(int64_t consumer) const;

  const RingShape shape_;
  const std::unique_ptr<DeviceCopies> copies_;
  const bool page_locked_;
  int64_t slot_bytes_ = 0;  // a multiple of 64
  std::unique_ptr<unsigned char, Free> memory_;

  mutable std::mutex mutex_;
  std::condition_variable freed_, published_;
  std::vector<Slot> slots_;
  std::vector<int64_t> free_;  // a stack: the slot released last is the one most likely still in the cache
  // Slot of each publication, by sequence modulo slots. What some consumer has yet to take cannot be free, so there are
  // never more of those than slots and none is overwritten.
  std::vector<int64_t> order_;
  int64_t next_sequence_ = 0;
  std::vector<int64_t> cursor_;  // [consumers] the sequence each takes next
  int64_t being_filled_ = 0;
  bool closed_ = false, failed_ = false;
  std::string copy_failure_;
};

}  // namespace ance_fast
