#include "cuda/pool_normalize.cuh"

namespace ance_fast {
namespace {

struct StreamLauncher {
  cudaStream_t stream;

  template <typename Kernel, typename... Args>
  cudaError_t operator()(Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes, const Args&... args) const {
    kernel<<<grid, block, shared_bytes, stream>>>(args...);
    return cudaGetLastError();
  }
};

}  // namespace

int64_t pool_forward_workspace(int64_t tokens, int64_t sequences, int64_t dim, PoolMode mode,
                               int32_t multiprocessors) {
  return pool_cuda::forward_workspace(tokens, sequences, dim, mode, multiprocessors);
}

int64_t pool_backward_workspace(int64_t sequences, int64_t dim, bool with_parameters) {
  return pool_cuda::backward_workspace(sequences, dim, with_parameters);
}

cudaError_t pool_normalize_forward_cuda(const PoolForwardCuda& args, cudaStream_t stream) {
  return pool_cuda::run_forward(args, StreamLauncher{stream});
}

cudaError_t pool_normalize_backward_cuda(const PoolBackwardCuda& args, cudaStream_t stream) {
  return pool_cuda::run_backward(args, StreamLauncher{stream});
}

}  // namespace ance_fast
