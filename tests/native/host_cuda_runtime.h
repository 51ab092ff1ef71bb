// Steers the stand-in for the CUDA runtime.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>

#include "copy_log.h"
#include "cuda/ring_copies.h"

namespace ance_fast {

struct HostCuda {
  CopyLog* log = nullptr;
  int64_t fail_at = -1;  // number of the copy that fails, or with `refuse` is refused
  bool refuse = false;
};

HostCuda& host_cuda();
void host_cuda_revive();
void host_cuda_launch(void* stream, std::function<void()> kernel);

// As in host_copies.h.
inline std::unique_ptr<DeviceCopies> make_copies(CopyLog* log, int64_t slots, uint64_t, int64_t fail_at, bool refuse) {
  host_cuda_revive();
  host_cuda() = {log, fail_at, refuse};
  return cuda_copies(slots);
}

// A stream of a producer's thread.
class ProducerStream {
 public:
  explicit ProducerStream(int device) : device_(device) {
    cudaSetDevice(device);
    cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
    cudaSetDevice(0);
  }
  ~ProducerStream() { cudaStreamDestroy(stream_); }
  ProducerStream(const ProducerStream&) = delete;
  ProducerStream& operator=(const ProducerStream&) = delete;

  int device() const { return device_; }
  void* handle() const { return stream_; }
  void launch(std::function<void()> kernel) const { host_cuda_launch(stream_, std::move(kernel)); }

 private:
  int device_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace ance_fast
