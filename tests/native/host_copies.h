// DeviceCopies without a device: one thread makes the copies, late and in the order they were asked for.
#pragma once

#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>

#include "copy_log.h"
#include "device_copies.h"

namespace ance_fast {

class HostCopies final : public DeviceCopies {
 public:
  // The copy number `fail_at` (from 0; -1: none) fails when it is made, or with `refuse` when it is asked for.
  HostCopies(CopyLog* log, uint64_t seed, int64_t fail_at, bool refuse)
      : log_(log), random_(seed), fail_at_(fail_at), refuse_(refuse), worker_([this] { work(); }) {}

  ~HostCopies() override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      over_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }

  void lock_pages(void*, size_t) override { ++log_->locked; }
  void unlock_pages(void*) noexcept override { --log_->locked; }

  void copy(int64_t slot, void* to, const DeviceSource& source, size_t bytes) override {
    const int64_t number = log_->asked++;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      // As with CUDA, a refusal does not mean that nothing was begun.
      queue_.push_back({slot, to, source.address, bytes, number == fail_at_ && !refuse_});
      ++unmade_[slot];
    }
    changed_.notify_all();
    if (number == fail_at_ && refuse_) throw std::runtime_error("planned refusal");
  }

  bool done(int64_t slot) override {
    std::unique_lock<std::mutex> lock(mutex_);
    if (failed_.count(slot) > 0) throw std::runtime_error("planned failure");
    const bool made = unmade_[slot] == 0;
    const bool linger = random_() % 8 == 0;
    lock.unlock();
    // Whoever asked may hear of it late, when the slot is already somebody else's.
    if (linger) std::this_thread::sleep_for(std::chrono::microseconds(300));
    return made;
  }

  double seconds() override { return kSecondsPerByte * static_cast<double>(log_->bytes); }

  void finish() noexcept override {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return queue_.empty() && !busy_; });
  }

 private:
  struct Copy {
    int64_t slot;
    void* to;
    const void* from;
    size_t bytes;
    bool fails;
  };

  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return over_ || !queue_.empty(); });
      if (queue_.empty()) return;
      const Copy copy = queue_.front();
      queue_.pop_front();
      busy_ = true;
      const auto delay = std::chrono::microseconds(random_() % 4 == 0 ? random_() % 500 : 0);
      lock.unlock();
      do {
        std::this_thread::sleep_for(delay);
      } while (log_->paused);
      std::memcpy(copy.to, copy.from, copy.fails ? copy.bytes / 2 : copy.bytes);
      log_->bytes += static_cast<int64_t>(copy.bytes);
      ++log_->made;
      lock.lock();
      busy_ = false;
      --unmade_[copy.slot];
      if (copy.fails) failed_.insert(copy.slot);
      changed_.notify_all();
    }
  }

  CopyLog* const log_;
  std::mt19937_64 random_;
  const int64_t fail_at_;
  const bool refuse_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Copy> queue_;
  std::map<int64_t, int64_t> unmade_;
  std::set<int64_t> failed_;
  bool busy_ = false, over_ = false;
  std::thread worker_;  // the last: it uses all of the above
};

inline std::unique_ptr<DeviceCopies> make_copies(CopyLog* log, int64_t, uint64_t seed, int64_t fail_at, bool refuse) {
  return std::make_unique<HostCopies>(log, seed, fail_at, refuse);
}

// This device has its rows at once.
class ProducerStream {
 public:
  explicit ProducerStream(int device) : device_(device) {}
  int device() const { return device_; }
  void* handle() const { return nullptr; }
  void launch(const std::function<void()>& kernel) const { kernel(); }

 private:
  int device_;
};

}  // namespace ance_fast
