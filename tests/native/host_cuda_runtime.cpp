// The part of the CUDA runtime that csrc/cuda/ring_copies.cpp calls, by threads of the host: a stream is a thread that
// does one thing after the other, late. Pointers of the device are pointers of the host. Once a copy fails every call
// does, as with a device whose context is lost. Events know the time of their stream, which has a clock of its own.
#include <cuda_runtime_api.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "host_cuda_runtime.h"

using namespace ance_fast;

namespace {

std::atomic<bool> lost{false};
thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

cudaError_t remembered(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

cudaError_t unless_lost() {
  return remembered(lost ? cudaErrorLaunchFailure : cudaSuccess);
}

}  // namespace

struct Event {
  std::mutex mutex;
  std::condition_variable passed;
  int64_t recorded = 0, reached = 0;  // the newest record, and the one that its stream has come to
  double seconds = 0;                 // on the clock of the stream that has come to it
};

struct CUevent_st {
  bool timed;
  int device = current_device;
  std::shared_ptr<Event> event = std::make_shared<Event>();  // outlives the handle where streams have yet to reach it
};

struct CUstream_st {
  explicit CUstream_st(uint64_t seed) : random(seed), worker([this] { work(); }) {}
  ~CUstream_st() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      over = true;
    }
    changed.notify_all();
    worker.join();
  }

  void then(std::function<void()> task) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      tasks.push_back(std::move(task));
    }
    changed.notify_all();
  }

  void work() {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      changed.wait(lock, [this] { return over || !tasks.empty(); });
      if (tasks.empty()) return;
      const auto task = std::move(tasks.front());
      const auto delay = std::chrono::microseconds(random() % 4 == 0 ? random() % 300 : 0);
      lock.unlock();
      std::this_thread::sleep_for(delay);
      task();
      lock.lock();
      tasks.pop_front();
      changed.notify_all();
    }
  }

  int device = current_device;
  double seconds = 0;  // the clock, of the worker
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> tasks;
  std::mt19937_64 random;
  bool over = false;
  std::thread worker;
};

namespace ance_fast {

HostCuda& host_cuda() {
  static HostCuda state;
  return state;
}

void host_cuda_revive() {
  lost = false;
}

void host_cuda_launch(void* stream, std::function<void()> kernel) {
  static_cast<cudaStream_t>(stream)->then(std::move(kernel));
}

}  // namespace ance_fast

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device > 1) return remembered(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}

const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorLaunchFailure ? "planned failure" : "planned refusal";
}

cudaError_t cudaHostRegister(void*, size_t, unsigned int) {
  ++host_cuda().log->locked;
  return unless_lost();
}

cudaError_t cudaHostUnregister(void*) {
  --host_cuda().log->locked;
  return unless_lost();
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  static std::atomic<uint64_t> seed{0};
  if (lost) return unless_lost();
  *stream = new CUstream_st(seed++);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return unless_lost();
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  std::unique_lock<std::mutex> lock(stream->mutex);
  stream->changed.wait(lock, [stream] { return stream->tasks.empty(); });
  return unless_lost();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  if (lost) return unless_lost();
  *event = new CUevent_st{(flags & cudaEventDisableTiming) == 0};
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return unless_lost();
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  if (lost) return unless_lost();
  if (handle->device != stream->device) return remembered(cudaErrorInvalidResourceHandle);
  const std::shared_ptr<Event> event = handle->event;
  int64_t number;
  {
    const std::lock_guard<std::mutex> lock(event->mutex);
    number = ++event->recorded;
  }
  stream->then([event, number, stream] {
    {
      const std::lock_guard<std::mutex> lock(event->mutex);
      event->reached = number;
      event->seconds = stream->seconds;
    }
    event->passed.notify_all();
  });
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  if (lost) return unless_lost();
  const std::shared_ptr<Event> event = handle->event;
  const std::lock_guard<std::mutex> lock(event->mutex);
  return remembered(event->reached < event->recorded ? cudaErrorNotReady : cudaSuccess);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (lost) return unless_lost();
  if (!begin->timed || !end->timed || begin->device != end->device) return remembered(cudaErrorInvalidResourceHandle);
  double seconds[2];
  for (int i = 0; i < 2; ++i) {
    Event& event = *(i == 0 ? begin : end)->event;
    const std::lock_guard<std::mutex> lock(event.mutex);
    if (event.recorded == 0) return remembered(cudaErrorInvalidResourceHandle);
    if (event.reached < event.recorded) return remembered(cudaErrorNotReady);
    seconds[i] = event.seconds;
  }
  *milliseconds = static_cast<float>((seconds[1] - seconds[0]) * 1000);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle, unsigned int) {
  const std::shared_ptr<Event> event = handle->event;
  int64_t number;
  {
    const std::lock_guard<std::mutex> lock(event->mutex);
    number = event->recorded;
  }
  stream->then([event, number, stream] {
    std::unique_lock<std::mutex> lock(event->mutex);
    event->passed.wait(lock, [event, number] { return event->reached >= number; });
    stream->seconds += 1;
  });
  return unless_lost();
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (lost) return unless_lost();
  HostCuda& cuda = host_cuda();
  const int64_t number = cuda.log->asked++;
  const bool bad = number == cuda.fail_at;
  stream->then([=, &cuda] {
    while (cuda.log->paused) std::this_thread::sleep_for(std::chrono::microseconds(100));
    std::memcpy(to, from, bad ? bytes / 2 : bytes);
    stream->seconds += kSecondsPerByte * static_cast<double>(bytes);
    cuda.log->bytes += static_cast<int64_t>(bytes);
    if (bad && !cuda.refuse) lost = true;
    ++cuda.log->made;
  });
  return remembered(bad && cuda.refuse ? cudaErrorInvalidValue : cudaSuccess);
}

}  // extern "C"
