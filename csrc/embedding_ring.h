// Bounded slots of embedding rows between producers and consumers. Every consumer sees every published slot once, in
// the order of publication, and a slot is free again when the last of them has released it: the slowest consumer sets
// the pace of the producers.
//
//   FREE --acquire--> FILLING --publish--> READY --first take--> DRAINING --last release--> FREE
//     ^------------------ abandon
//
// One mutex guards the states and is held for a few instructions only. Rows are written and read outside of it: what
// was written before publish is seen after take, and what was read before release is read before the next acquire.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

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
  // Throws std::invalid_argument for a size below 1 or one that does not fit an address space, std::bad_alloc.
  explicit EmbeddingRing(const RingShape& shape);
  EmbeddingRing(const EmbeddingRing&) = delete;
  EmbeddingRing& operator=(const EmbeddingRing&) = delete;

  const RingShape& shape() const { return shape_; }
  // Rows of a slot, [rows, dim], 64-byte aligned.
  void* data(int64_t slot) const { return memory_.get() + slot * slot_bytes_; }

  // For producers. A slot acquired must be published or abandoned. Publishing to a ring that has failed gives the slot
  // back and returns kFailed; one that has been closed since still takes it, since its consumers wait for it.
  // std::logic_error for a slot that is not being filled, std::invalid_argument for rows outside 1 .. shape().rows.
  RingResult acquire(std::chrono::nanoseconds wait, int64_t* slot);
  RingResult publish(int64_t slot, int64_t rows, int64_t tag);
  void abandon(int64_t slot);

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
  std::vector<SlotState> states() const;

 private:
  struct Slot {
    SlotState state = SlotState::kFree;
    SlotContent content{};
    int64_t unreleased = 0;          // consumers that have yet to release it
    std::vector<unsigned char> held;  // [consumers]
  };
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };

  Slot& filling(int64_t slot, const char* action);
  void check_consumer(int64_t consumer) const;

  const RingShape shape_;
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
};

}  // namespace ance_fast
