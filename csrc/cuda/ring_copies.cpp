// Order of one copy:
//
//   producer's stream:  ... kernels that write the rows | produced
//   copy stream:                                          wait(produced) | begun | copy to the host | copied
//   consumers:                                                                                        query(copied) ...
//
// A copy has its three events until a query finds that it is made; the next copy on its device uses them again. What
// lies between the last two is the time of the copy, read in that query, so that nobody ever waits for a measurement.
//
// Pages are locked with cudaHostRegister rather than allocated with cudaHostAlloc: they stay the huge pages that the
// ring asked for, which consumers on the host read faster, and the ring has one kind of memory with or without a device.
#include "cuda/ring_copies.h"

#include <cuda_runtime_api.h>

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ance_fast {
namespace {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // it is reported here and must not surface in an unrelated later call
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

// Makes a device the current one of this thread, and the former one again.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check(cudaGetDevice(&former_), "cudaGetDevice");
    if (device != former_) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != former_;
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(former_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int former_ = 0;
  bool changed_ = false;
};

struct DestroyEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using Event = std::unique_ptr<CUevent_st, DestroyEvent>;

Event make_event(unsigned int flags) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, flags), "cudaEventCreateWithFlags");
  return Event(event);
}

struct CopyEvents {
  Event produced = make_event(cudaEventDisableTiming);
  Event begun = make_event(cudaEventDefault), copied = make_event(cudaEventDefault);
};

struct QueuedCopy {
  int device;
  CopyEvents events;
};

// What a device has of the ring.
struct Lane {
  cudaStream_t stream = nullptr;
  std::vector<CopyEvents> spare;
  std::mutex queueing;  // of what belongs to one copy: the wait for another producer would count as its time
};

class CudaCopies final : public DeviceCopies {
 public:
  explicit CudaCopies(int64_t slots) : queued_(static_cast<size_t>(slots)) {}

  ~CudaCopies() override {
    finish();
    for (auto& [device, lane] : lanes_) {
      if (lane.stream != nullptr) cudaStreamDestroy(lane.stream);
    }
  }

  void lock_pages(void* memory, size_t bytes) override {
    check(cudaHostRegister(memory, bytes, cudaHostRegisterPortable), "cudaHostRegister");
  }

  void unlock_pages(void* memory) noexcept override { cudaHostUnregister(memory); }

  void copy(int64_t slot, void* to, const DeviceSource& source, size_t bytes) override {
    const DeviceScope scope(source.device);
    const auto producer = static_cast<cudaStream_t>(source.stream);
    auto [lane, events] = prepare(source.device);
    check(cudaEventRecord(events.produced.get(), producer), "cudaEventRecord");
    {
      const std::lock_guard<std::mutex> turn(lane.queueing);
      check(cudaStreamWaitEvent(lane.stream, events.produced.get(), 0), "cudaStreamWaitEvent");
      check(cudaEventRecord(events.begun.get(), lane.stream), "cudaEventRecord");
      check(cudaMemcpyAsync(to, source.address, bytes, cudaMemcpyDeviceToHost, lane.stream), "cudaMemcpyAsync");
      check(cudaEventRecord(events.copied.get(), lane.stream), "cudaEventRecord");
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    queued_[static_cast<size_t>(slot)].push_back({source.device, std::move(events)});
  }

  bool done(int64_t slot) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& queued = queued_[static_cast<size_t>(slot)];
    for (; !queued.empty(); queued.pop_front()) {
      QueuedCopy& copy = queued.front();
      const cudaError_t status = cudaEventQuery(copy.events.copied.get());
      if (status == cudaErrorNotReady) {
        cudaGetLastError();  // not an error, but remembered like one
        return false;
      }
      check(status, "copy into the ring");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, copy.events.begun.get(), copy.events.copied.get()),
            "cudaEventElapsedTime");
      seconds_ += static_cast<double>(milliseconds) / 1000;
      lanes_[copy.device].spare.push_back(std::move(copy.events));
    }
    return true;
  }

  double seconds() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return seconds_;
  }

  void finish() noexcept override {
    std::vector<cudaStream_t> streams;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const auto& [device, lane] : lanes_) {
        if (lane.stream != nullptr) streams.push_back(lane.stream);
      }
    }
    for (const cudaStream_t stream : streams) cudaStreamSynchronize(stream);
  }

 private:
  struct Prepared {
    Lane& lane;
    CopyEvents events;
  };

  // The lane of a device, which is the current one, and events of it that no copy uses.
  Prepared prepare(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Lane& lane = lanes_[device];
    if (lane.stream == nullptr) {
      check(cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    }
    if (lane.spare.empty()) return {lane, {}};
    CopyEvents events = std::move(lane.spare.back());
    lane.spare.pop_back();
    return {lane, std::move(events)};
  }

  std::mutex mutex_;  // of all below but for queueing; not held during a call that waits for the device
  std::map<int, Lane> lanes_;
  std::vector<std::deque<QueuedCopy>> queued_;  // [slots] copies not yet found to be made, in the order of queueing
  double seconds_ = 0;
};

}  // namespace

std::unique_ptr<DeviceCopies> cuda_copies(int64_t slots) {
  return std::make_unique<CudaCopies>(slots);
}

}  // namespace ance_fast
