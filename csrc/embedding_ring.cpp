#include "embedding_ring.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "pages.h"

namespace ance_fast {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kHugePage = int64_t{1} << 21;
// Devices are asked again and again rather than waited for: a wait inside their driver could not be ended by a timeout,
// a failure or Ctrl-C. A slot takes a millisecond to be computed, so this costs neither time nor much of a core.
constexpr std::chrono::microseconds kAskAgain(20);

int64_t at_least_one(const char* name, int64_t value) {
  if (value >= 1) return value;
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; it must be at least 1");
}

int64_t product(int64_t a, int64_t b) {
  // Half the range, so that rounding up to an alignment cannot overflow either.
  if (a > std::numeric_limits<int64_t>::max() / 2 / b) {
    throw std::invalid_argument("slots * rows * dim is more memory than there are addresses");
  }
  return a * b;
}

int64_t round_up(int64_t bytes, int64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

EmbeddingRing::EmbeddingRing(const RingShape& shape, std::unique_ptr<DeviceCopies> copies, bool page_locked)
    : shape_(shape), copies_(std::move(copies)), page_locked_(page_locked) {
  at_least_one("slots", shape.slots);
  at_least_one("rows", shape.rows);
  at_least_one("dim", shape.dim);
  at_least_one("element_bytes", shape.element_bytes);
  at_least_one("consumers", shape.consumers);
  slot_bytes_ = round_up(product(product(shape.rows, shape.dim), shape.element_bytes), kAlignment);
  const int64_t bytes = product(shape.slots, slot_bytes_);
  // Aligned to huge pages where one fits: the advice below covers whole pages only.
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  const size_t total = static_cast<size_t>(round_up(bytes, alignment));
  memory_.reset(static_cast<unsigned char*>(std::aligned_alloc(static_cast<size_t>(alignment), total)));
  if (!memory_) throw std::bad_alloc();
  // Now, and not in the producer's first round: a first touch takes longer than a copy.
  advise_huge_pages(memory_.get(), total);
  fill_with_pages(memory_.get(), total);

  slots_.resize(static_cast<size_t>(shape.slots));
  for (Slot& slot : slots_) slot.held.assign(static_cast<size_t>(shape.consumers), 0);
  for (int64_t slot = shape.slots; slot-- > 0;) free_.push_back(slot);
  order_.assign(slots_.size(), 0);
  cursor_.assign(static_cast<size_t>(shape.consumers), 0);

  // Last, since it is undone in the destructor alone.
  if (!page_locked) return;
  if (!copies_) throw std::invalid_argument("memory is page-locked for a device, and there is none");
  copies_->lock_pages(memory_.get(), total);
}

EmbeddingRing::~EmbeddingRing() {
  if (!copies_) return;
  copies_->finish();
  if (page_locked_) copies_->unlock_pages(memory_.get());
}

RingResult EmbeddingRing::acquire(std::chrono::nanoseconds wait, int64_t* slot) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!freed_.wait_for(lock, wait, [this] { return failed_ || closed_ || !free_.empty(); })) {
    return RingResult::kTimeout;
  }
  if (failed_) return RingResult::kFailed;
  if (closed_) return RingResult::kEnded;
  *slot = free_.back();
  free_.pop_back();
  slots_[*slot].state = SlotState::kFilling;
  ++being_filled_;
  return RingResult::kDone;
}

RingResult EmbeddingRing::publish(int64_t slot, int64_t rows, int64_t tag) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Slot& entry = filling(slot, "published");
    if (rows < 1 || rows > shape_.rows) {
      throw std::invalid_argument("a slot holds 1 to " + std::to_string(shape_.rows) + " rows, so " +
                                  std::to_string(rows) + " cannot be published");
    }
    --being_filled_;
    if (failed_) {
      entry.state = SlotState::kFree;
      free_.push_back(slot);
      return RingResult::kFailed;
    }
    entry.state = SlotState::kReady;
    entry.content = {rows, tag, next_sequence_};
    entry.unreleased = shape_.consumers;
    order_[next_sequence_ % shape_.slots] = slot;
    ++next_sequence_;
  }
  published_.notify_all();
  return RingResult::kDone;
}

void EmbeddingRing::abandon(int64_t slot) {
  Owners finished;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    Slot& entry = filling(slot, "abandoned");
    while (entry.copying && !failed_) {
      lock.unlock();
      bool done = false;
      try {
        done = copies_->done(slot);
      } catch (const std::exception& error) {
        fail_copy(error.what());
      }
      if (!done) std::this_thread::sleep_for(kAskAgain);
      lock.lock();
      if (!done) continue;
      copied(entry, &finished);
    }
    entry.state = SlotState::kFree;
    --being_filled_;
    free_.push_back(slot);
  }
  freed_.notify_one();
  // After close() the consumers may have waited for this slot alone.
  published_.notify_all();
}

void EmbeddingRing::copy_from_device(int64_t slot, int64_t first, int64_t rows, const DeviceSource& source) {
  if (!copies_) throw std::logic_error("the ring was made without a device to copy from");
  if (first < 0 || rows < 1 || first > shape_.rows - rows) {
    throw std::invalid_argument("rows " + std::to_string(first) + " .. " + std::to_string(first) + " + " +
                                std::to_string(rows) + " are not within a slot of " + std::to_string(shape_.rows));
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Slot& entry = filling(slot, "copied to");
    entry.copying = true;
    entry.owners.push_back(source.owner);
  }
  const int64_t row_bytes = shape_.dim * shape_.element_bytes;
  auto* to = static_cast<unsigned char*>(data(slot)) + first * row_bytes;
  try {
    copies_->copy(slot, to, source, static_cast<size_t>(rows * row_bytes));
  } catch (const std::exception& error) {
    fail_copy(error.what());  // it may have begun, and nobody could tell when it ends
    throw;
  }
}

RingResult EmbeddingRing::take(int64_t consumer, std::chrono::nanoseconds wait, int64_t* slot, SlotContent* content) {
  check_consumer(consumer);
  const auto end = std::chrono::steady_clock::now() + wait;
  Owners finished;  // outlives the lock
  std::unique_lock<std::mutex> lock(mutex_);
  int64_t& cursor = cursor_[consumer];
  const auto settled = [&] { return failed_ || cursor < next_sequence_ || (closed_ && being_filled_ == 0); };
  while (true) {
    if (!published_.wait_until(lock, end, settled)) return RingResult::kTimeout;
    if (failed_) return RingResult::kFailed;
    if (cursor == next_sequence_) return RingResult::kEnded;
    *slot = order_[cursor % shape_.slots];
    Slot& entry = slots_[*slot];
    if (!entry.copying) {
      ++cursor;
      entry.state = SlotState::kDraining;
      entry.held[consumer] = 1;
      *content = entry.content;
      return RingResult::kDone;
    }
    // Another thread of this consumer may take the slot meanwhile, and a producer fill it anew and publish it or give it
    // back: what was found out about this publication counts for no other copy.
    const int64_t sequence = entry.content.sequence;
    lock.unlock();
    bool done = false;
    try {
      done = copies_->done(*slot);
    } catch (const std::exception& error) {
      fail_copy(error.what());
      return RingResult::kFailed;
    }
    if (!done && std::chrono::steady_clock::now() >= end) return RingResult::kTimeout;
    if (!done) std::this_thread::sleep_for(kAskAgain);
    lock.lock();
    const bool published = entry.state == SlotState::kReady || entry.state == SlotState::kDraining;
    if (done && entry.copying && published && entry.content.sequence == sequence) {
      copied(entry, &finished);
    }
  }
}

void EmbeddingRing::release(int64_t consumer, int64_t slot) {
  check_consumer(consumer);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (slot < 0 || slot >= shape_.slots || !slots_[slot].held[consumer]) {
      throw std::logic_error("slot " + std::to_string(slot) + " is not held by consumer " + std::to_string(consumer));
    }
    Slot& entry = slots_[slot];
    entry.held[consumer] = 0;
    if (--entry.unreleased > 0) return;
    entry.state = SlotState::kFree;
    free_.push_back(slot);
  }
  // One is enough: whoever it wakes looks for a free slot before it reports a timeout.
  freed_.notify_one();
}

void EmbeddingRing::close() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  freed_.notify_all();
  published_.notify_all();
}

void EmbeddingRing::fail() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    failed_ = true;
  }
  freed_.notify_all();
  published_.notify_all();
}

void EmbeddingRing::copied(Slot& slot, Owners* finished) {
  slot.copying = false;
  std::move(slot.owners.begin(), slot.owners.end(), std::back_inserter(*finished));
  slot.owners.clear();
}

void EmbeddingRing::fail_copy(const std::string& reason) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (copy_failure_.empty()) copy_failure_ = reason;
  }
  fail();
}

bool EmbeddingRing::closed() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return closed_;
}

bool EmbeddingRing::failed() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return failed_;
}

std::string EmbeddingRing::copy_failure() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return copy_failure_;
}

double EmbeddingRing::copy_seconds() const {
  return copies_ ? copies_->seconds() : 0.0;
}

std::vector<SlotState> EmbeddingRing::states() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<SlotState> states;
  for (const Slot& slot : slots_) states.push_back(slot.state);
  return states;
}

EmbeddingRing::Slot& EmbeddingRing::filling(int64_t slot, const char* action) {
  if (slot < 0 || slot >= shape_.slots || slots_[slot].state != SlotState::kFilling) {
    throw std::logic_error("slot " + std::to_string(slot) + " is not being filled and cannot be " + action);
  }
  return slots_[slot];
}

void EmbeddingRing::check_consumer(int64_t consumer) const {
  if (consumer >= 0 && consumer < shape_.consumers) return;
  throw std::out_of_range("consumer " + std::to_string(consumer) + " is outside 0 .. " +
                          std::to_string(shape_.consumers) + " - 1");
}

}  // namespace ance_fast
