// Order of one copy:
//
//   producer's stream:  ... kernels that write the rows | produced
//   copy stream:                                          wait(produced) | copy to the host | copied
//   consumers:                                                                                query(copied) ...
//
// Both events belong to the slot, which one producer at a time fills. Several copies into a slot follow each other on
// the copy stream, so the last `copied` stands for all of them.
//
// Pages are locked with cudaHostRegister rather than allocated with cudaHostAlloc: they stay the huge pages that the
// ring asked for, which consumers on the host read faster, and the ring has one kind of memory with or without a device.
#include "cuda/ring_copies.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
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

struct SlotEvents {
  cudaEvent_t produced = nullptr, copied = nullptr;  // both or none
};

// What a device has of the ring.
struct Lane {
  cudaStream_t stream = nullptr;
  std::vector<SlotEvents> slots;
};

class CudaCopies final : public DeviceCopies {
 public:
  explicit CudaCopies(int64_t slots) : slots_(static_cast<size_t>(slots)) {}

  ~CudaCopies() override {
    finish();
    for (auto& [device, lane] : lanes_) {
      for (const SlotEvents& events : lane.slots) {
        if (events.produced != nullptr) cudaEventDestroy(events.produced);
        if (events.copied != nullptr) cudaEventDestroy(events.copied);
      }
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
    const auto [stream, events] = prepare(source.device, slot);
    check(cudaEventRecord(events.produced, producer), "cudaEventRecord");
    check(cudaStreamWaitEvent(stream, events.produced, 0), "cudaStreamWaitEvent");
    check(cudaMemcpyAsync(to, source.address, bytes, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
    check(cudaEventRecord(events.copied, stream), "cudaEventRecord");
  }

  bool done(int64_t slot) override {
    for (const cudaEvent_t event : copied(slot)) {
      const cudaError_t status = cudaEventQuery(event);
      if (status == cudaErrorNotReady) {
        cudaGetLastError();  // not an error, but remembered like one
        return false;
      }
      check(status, "copy into the ring");
    }
    return true;
  }

  void finish() noexcept override {
    std::vector<cudaStream_t> streams;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const auto& [device, lane] : lanes_) streams.push_back(lane.stream);
    }
    for (const cudaStream_t stream : streams) cudaStreamSynchronize(stream);
  }

 private:
  struct Prepared {
    cudaStream_t stream;
    SlotEvents events;
  };

  // The copy stream of a device, which is the current one, and the slot's events there; made when first asked for.
  Prepared prepare(int device, int64_t slot) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Lane& lane = lanes_[device];
    if (lane.stream == nullptr) {
      lane.slots.resize(slots_);
      check(cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    }
    SlotEvents& events = lane.slots[static_cast<size_t>(slot)];
    for (cudaEvent_t* event : {&events.produced, &events.copied}) {
      if (*event == nullptr) check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    }
    return {lane.stream, events};
  }

  // One never recorded counts as passed.
  std::vector<cudaEvent_t> copied(int64_t slot) {
    std::vector<cudaEvent_t> events;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [device, lane] : lanes_) {
      const cudaEvent_t event = lane.slots[static_cast<size_t>(slot)].copied;
      if (event != nullptr) events.push_back(event);
    }
    return events;
  }

  const size_t slots_;
  std::mutex mutex_;  // of the map and the handles in it; not held during a call that may wait
  std::map<int, Lane> lanes_;
};

}  // namespace

std::unique_ptr<DeviceCopies> cuda_copies(int64_t slots) {
  return std::make_unique<CudaCopies>(slots);
}

}  // namespace ance_fast
