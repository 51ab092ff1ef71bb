// Small kernels, right and wrong ones, that show what host_cuda.h finds.
#include "host_cuda.h"

namespace {

HOST_CUDA_SHARED(int, values, 1024);

constexpr unsigned kFull = 0xffffffffu;

// out[i]: the value that thread i + 1 wrote, which it can only know after a barrier.
template <bool kBarrier>
__global__ void neighbours(int* out) {
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % blockDim.x];
}

__global__ void barrier_in_a_branch(int*) {
  if (threadIdx.x < 40) __syncthreads();
}

__global__ void two_barriers(int*) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void shuffle_from_a_lane_without(int* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(0xffu, 1, 9);
}

__global__ void warp_in_a_branch(int* out) {
  if (threadIdx.x % 2) out[threadIdx.x] = __shfl_xor_sync(kFull, 1, 1);
}

__global__ void past_the_end(int*) { values[blockDim.x] = 1; }

__global__ void exchanges(int* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int right = __shfl_sync(kFull, lane, 5) == 5;
  right &= __shfl_up_sync(kFull, lane, 1) == (lane ? lane - 1 : 0);
  right &= __shfl_down_sync(kFull, lane, 1) == (lane < 31 ? lane + 1 : 31);
  right &= __shfl_xor_sync(kFull, 0.5 * lane, 3) == 0.5 * (lane ^ 3);
  right &= __ballot_sync(kFull, lane < 3) == 7u;
  right &= __any_sync(kFull, lane == 30) && !__any_sync(kFull, lane == 32);
  right &= __all_sync(kFull, lane < 32) && !__all_sync(kFull, lane < 31);
  __syncwarp();
  if (lane < 4) right &= __shfl_xor_sync(0xfu, lane, 1) == (lane ^ 1);
  out[threadIdx.x] = right;
}

using Kernel = void (*)(int*);
constexpr Kernel kKernels[] = {neighbours<true>,  neighbours<false>,           barrier_in_a_branch,
                               two_barriers,      shuffle_from_a_lane_without, warp_in_a_branch,
                               past_the_end,      exchanges};

}  // namespace

// out: an entry for each of the 64 threads. Returns what was found, or an empty text.
extern "C" const char* run(int kernel, uint64_t seed, int* out) {
  host_cuda::executor.seed(seed);
  host_cuda::launch(kKernels[kernel], dim3(2), dim3(64), 64 * sizeof(int), out);
  return host_cuda::executor.error().c_str();
}
