// Runs CUDA kernels on the CPU, so that tests of them need no GPU. Include it before the device code, compile with g++.
//
// Every thread of a block is a fiber (ucontext), and the blocks run one after another. Threads give way only where they
// wait for each other: at __syncthreads, __syncwarp, shuffles and votes. Which of the ready threads goes on is drawn
// from a seed, and so is the order of the blocks: a missing barrier shows as a result that depends on the seed. Half of
// the blocks draw among all ready threads; in the other half one warp runs as far ahead as it can, which finds memory
// that is written again before everybody has read it. Found as well: threads that wait for one that never comes or that
// waits elsewhere, shuffles from a lane that takes no part, writes past the end of dynamic shared memory, and (as NaN)
// reads of shared memory that nothing wrote.
//
// Not modelled: several blocks at a time, clusters, atomics, tensor cores, asynchronous copies, timing.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

// CUDA's headers define these for plain C++ as well.
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __shared__ thread_local  // static where it is declared in a function, and legal after `extern`
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace host_cuda {

constexpr unsigned kWarpSize = 32;
constexpr size_t kStackBytes = 64 * 1024;
constexpr unsigned char kPoison = 0xff;  // floats of these bytes are NaN
constexpr unsigned char kCanary = 0xa5;

// Where in the source a thread waits, and for whom.
struct Wait {
  const char* file = nullptr;  // null: it does not wait
  int line = 0;
  bool whole_block = false;
  uint32_t mask = 0;  // lanes of the warp

  bool operator==(const Wait& other) const {
    return file == other.file && line == other.line && whole_block == other.whole_block && mask == other.mask;
  }
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  uint3 index;
  bool finished;
  Wait wait;
  uint64_t offered;   // what this lane shows to its warp
  int source;         // lane whose offer it wants
  uint64_t received;  // the offer of that lane
  uint32_t votes;     // lanes whose offer is not 0
};

class Executor {
 public:
  void seed(uint64_t value) { random_.seed(value); }
  void use_shared_memory(void* memory, size_t capacity) {
    shared_ = static_cast<unsigned char*>(memory);
    capacity_ = capacity;
  }
  const std::string& error() const { return error_; }

  bool launch(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel) {
    error_.clear();
    kernel_ = std::move(kernel);
    gridDim = grid;
    blockDim = block;
    threads_ = block.x * block.y * block.z;
    if (threads_ == 0 || threads_ > 1024 || grid.x * grid.y * grid.z == 0) return fail("invalid launch shape");
    if (shared_bytes > capacity_) return fail("the kernel asks for more dynamic shared memory than there is");
    while (fibers_.size() < threads_) fibers_.push_back(std::make_unique<Fiber>());
    std::vector<unsigned> order(static_cast<size_t>(grid.x) * grid.y * grid.z);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), random_);
    for (const unsigned i : order) {
      blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
      if (!run_block(shared_bytes)) return false;
    }
    return true;
  }

  // Called by a thread: returns when everybody it waits for has come.
  void wait(const Wait& wait) {
    fibers_[current_]->wait = wait;
    swapcontext(&fibers_[current_]->context, &scheduler_);
  }

  Fiber& self() { return *fibers_[current_]; }
  unsigned lane() const { return current_ % kWarpSize; }
  void run_kernel() { kernel_(); }

 private:
  bool run_block(size_t shared_bytes) {
    std::memset(shared_, kPoison, shared_bytes);
    std::memset(shared_ + shared_bytes, kCanary, capacity_ - shared_bytes);
    ready_.clear();
    finished_ = waiting_ = 0;
    run_ahead_ = random_() % 2 == 0;
    for (unsigned i = 0; i < threads_; ++i) start(i);
    make_ready_by_warp();
    while (!ready_.empty()) {
      const size_t pick = run_ahead_ ? ready_.size() - 1 : random_() % ready_.size();
      std::swap(ready_[pick], ready_.back());
      current_ = ready_.back();
      ready_.pop_back();
      resume();
      if (!error_.empty()) return false;
    }
    if (finished_ != threads_) return fail("threads wait for others that never come:" + waiting_threads());
    for (size_t i = shared_bytes; i < capacity_; ++i) {
      if (shared_[i] != kCanary) return fail("write past the end of dynamic shared memory");
    }
    return true;
  }

  void start(unsigned i);

  void resume() {
    Fiber& fiber = *fibers_[current_];
    threadIdx = fiber.index;
    swapcontext(&scheduler_, &fiber.context);
    if (fiber.finished) {
      ++finished_;
    } else if (fiber.wait.whole_block) {
      if (++waiting_ == threads_) release_block();
    } else {
      release_warp();
    }
  }

  void release_block() {
    for (unsigned i = 0; i < threads_; ++i) {
      if (!(fibers_[i]->wait == fibers_[0]->wait)) {
        fail("threads wait at different barriers:" + waiting_threads());
        return;
      }
    }
    waiting_ = 0;
    make_ready_by_warp();
  }

  // All threads, the warps in random order: whoever is made ready last runs ahead.
  void make_ready_by_warp() {
    std::vector<unsigned> firsts;
    for (unsigned first = 0; first < threads_; first += kWarpSize) firsts.push_back(first);
    std::shuffle(firsts.begin(), firsts.end(), random_);
    for (const unsigned first : firsts) {
      for (unsigned i = first; i < std::min(first + kWarpSize, threads_); ++i) release(i);
    }
  }

  // Lets the lanes that the current one waits for go on once all of them wait at the same place.
  void release_warp() {
    const unsigned first = current_ / kWarpSize * kWarpSize;
    const Wait wait = fibers_[current_]->wait;
    if (!(wait.mask >> (current_ - first) & 1)) {
      fail("a lane is not in the mask that it gives:" + waiting_threads());
      return;
    }
    uint32_t votes = 0;
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if (!(wait.mask >> lane & 1)) continue;
      if (first + lane >= threads_ || !(fibers_[first + lane]->wait == wait)) return;
      votes |= static_cast<uint32_t>(fibers_[first + lane]->offered != 0) << lane;
    }
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if (wait.mask >> lane & 1) exchange(first, lane, wait.mask, votes);
    }
  }

  void exchange(unsigned first, unsigned lane, uint32_t mask, uint32_t votes) {
    Fiber& fiber = *fibers_[first + lane];
    if (!(mask >> fiber.source & 1)) fail("a shuffle reads a lane that takes no part");
    fiber.received = fibers_[first + static_cast<unsigned>(fiber.source) % kWarpSize]->offered;
    fiber.votes = votes;
    release(first + lane);
  }

  void release(unsigned i) {
    fibers_[i]->wait = {};
    ready_.push_back(i);
  }

  std::string waiting_threads() const {
    std::ostringstream text;
    for (unsigned i = 0; i < threads_; ++i) {
      const Fiber& fiber = *fibers_[i];
      if (!fiber.finished && fiber.wait.file) text << " " << i << " at line " << fiber.wait.line << ",";
      if (fiber.finished) text << " " << i << " has ended,";
    }
    return text.str();
  }

  bool fail(const std::string& message) {
    if (error_.empty()) error_ = message;
    return false;
  }

  std::mt19937_64 random_;
  std::function<void()> kernel_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<unsigned> ready_;
  ucontext_t scheduler_;
  unsigned threads_ = 0, current_ = 0, finished_ = 0, waiting_ = 0;
  unsigned char* shared_ = nullptr;
  size_t capacity_ = 0;
  bool run_ahead_ = false;
  std::string error_;
};

inline Executor executor;

inline void fiber_main() {
  executor.run_kernel();
  executor.self().finished = true;
}

inline void Executor::start(unsigned i) {
  Fiber& fiber = *fibers_[i];
  fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
  fiber.finished = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = &scheduler_;
  makecontext(&fiber.context, fiber_main, 0);
}

// Returns false with executor.error() set when the kernel misbehaves.
template <typename... Params, typename... Args>
bool launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, const Args&... args) {
  return executor.launch(grid, block, shared_bytes, [&] { kernel(args...); });
}

inline void sync_block(const char* file, int line) { executor.wait({file, line, true, 0}); }

// Shows `offer` to the lanes of the mask; what this lane gets is in the returned fiber.
inline Fiber& meet(const char* file, int line, uint32_t mask, uint64_t offer, int source) {
  Fiber& self = executor.self();
  self.offered = offer;
  self.source = source;
  executor.wait({file, line, false, mask});
  return self;
}

inline void sync_warp(const char* file, int line, uint32_t mask = 0xffffffffu) {
  meet(file, line, mask, 0, static_cast<int>(executor.lane()));
}

template <typename T>
T shuffle(const char* file, int line, uint32_t mask, T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most eight bytes");
  uint64_t offer = 0;
  std::memcpy(&offer, &value, sizeof(T));
  const bool outside = source < 0 || source >= static_cast<int>(kWarpSize);
  const Fiber& self = meet(file, line, mask, offer, outside ? static_cast<int>(executor.lane()) : source);
  std::memcpy(&value, &self.received, sizeof(T));
  return value;
}

inline uint32_t ballot(const char* file, int line, uint32_t mask, bool vote) {
  return meet(file, line, mask, vote, static_cast<int>(executor.lane())).votes;
}

}  // namespace host_cuda

// Memory behind `extern __shared__ type name[]`; to stand in the namespace of that declaration.
#define HOST_CUDA_SHARED(type, name, bytes)                                              \
  alignas(128) thread_local type name[(bytes) / sizeof(type)];                           \
  [[maybe_unused]] static const bool name##_is_used = [] {                               \
    host_cuda::executor.use_shared_memory(name, sizeof(name));                           \
    return true;                                                                         \
  }()

// clang-format off
#define HOST_CUDA_HERE __FILE__, __LINE__
#define HOST_CUDA_LANE static_cast<int>(host_cuda::executor.lane())
#define __syncthreads() host_cuda::sync_block(HOST_CUDA_HERE)
#define __syncwarp(...) host_cuda::sync_warp(HOST_CUDA_HERE __VA_OPT__(,) __VA_ARGS__)
#define __shfl_sync(mask, value, source) \
  host_cuda::shuffle(HOST_CUDA_HERE, mask, value, static_cast<int>(source) & 31)
#define __shfl_up_sync(mask, value, delta) \
  host_cuda::shuffle(HOST_CUDA_HERE, mask, value, HOST_CUDA_LANE - static_cast<int>(delta))
#define __shfl_down_sync(mask, value, delta) \
  host_cuda::shuffle(HOST_CUDA_HERE, mask, value, HOST_CUDA_LANE + static_cast<int>(delta))
#define __shfl_xor_sync(mask, value, lanes) \
  host_cuda::shuffle(HOST_CUDA_HERE, mask, value, HOST_CUDA_LANE ^ static_cast<int>(lanes))
#define __ballot_sync(mask, vote) host_cuda::ballot(HOST_CUDA_HERE, mask, (vote) != 0)
#define __any_sync(mask, vote) (host_cuda::ballot(HOST_CUDA_HERE, mask, (vote) != 0) != 0)
#define __all_sync(mask, vote) (host_cuda::ballot(HOST_CUDA_HERE, mask, (vote) != 0) == (mask))
// clang-format on
