// csrc/cuda/pool_normalize.cuh run on the CPU, for ctypes.
#include "host_cuda.h"

#include "cuda/pool_normalize.cuh"

namespace ance_fast {
namespace pool_cuda {
HOST_CUDA_SHARED(float, pool_shared, 48 * 1024);
}  // namespace pool_cuda

namespace {

struct HostLauncher {
  template <typename Kernel, typename... Args>
  cudaError_t operator()(Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes, const Args&... args) const {
    return host_cuda::launch(kernel, grid, block, shared_bytes, args...) ? cudaSuccess : cudaErrorLaunchFailure;
  }
};

}  // namespace
}  // namespace ance_fast

extern "C" {

int pool_forward(const ance_fast::PoolForwardCuda* args, uint64_t seed) {
  host_cuda::executor.seed(seed);
  return ance_fast::pool_cuda::run_forward(*args, ance_fast::HostLauncher{});
}

int pool_backward(const ance_fast::PoolBackwardCuda* args, uint64_t seed) {
  host_cuda::executor.seed(seed);
  return ance_fast::pool_cuda::run_backward(*args, ance_fast::HostLauncher{});
}

int64_t forward_workspace(const ance_fast::PoolForwardCuda* args) {
  return ance_fast::pool_cuda::forward_workspace(args->tokens, args->sequences, args->dim, args->mode,
                                                 args->multiprocessors);
}

int64_t backward_workspace(const ance_fast::PoolBackwardCuda* args) {
  return ance_fast::pool_cuda::backward_workspace(args->sequences, args->dim, args->grad_weight != nullptr);
}

int64_t forward_size() { return sizeof(ance_fast::PoolForwardCuda); }
int64_t backward_size() { return sizeof(ance_fast::PoolBackwardCuda); }
const char* error() { return host_cuda::executor.error().c_str(); }
}
