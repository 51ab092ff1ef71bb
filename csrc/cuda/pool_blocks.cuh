// Which threads and blocks of the pooling kernels own which columns and tokens.
//
// Launch shape. A block owns one sequence. Its threads form `groups` x `lanes`: a lane owns 16 bytes of columns, so
// that a warp reads whole cache lines, and group g takes the tokens g, g + groups, ... At D = 768 in bf16 that is
// 2 x 96. The groups meet in shared memory once per split of 256 tokens, and the splits are added in order. So a row's
// bits depend on its own tokens alone (and on D, dtype and alignment), not on who else is in the batch.
//
// Long sequences. With a block a sequence, a few long sequences would leave most multiprocessors idle. Where sequences
// are fewer than the machine holds blocks and longer than a split on average (all that the host knows without waiting),
// a block owns one split instead, and a second kernel adds the splits in the same order: the same bits either way.
// Split s of sequence b has slot cu_seqlens[b] / 256 + b + s: no two share one, there are at most tokens / 256 +
// sequences, and a block finds its sequence by binary search, so no list of splits has to be built first.
#pragma once

#include <cstdint>

#include "cuda/pool_normalize.h"

namespace ance_fast {
namespace pool_cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kSplitTokens = 256;
constexpr int kInFlight = 4;            // rows a thread loads before it uses the first
constexpr int kBlocksPerProcessor = 4;  // sequences per multiprocessor that keep it busy

struct Layout {
  int lanes;   // packs of columns side by side
  int groups;  // tokens at a time
};

__host__ __device__ inline Layout layout_of(int64_t dim, int width, bool one_token) {
  const int64_t packs = (dim + width - 1) / width;
  const int lanes = packs < kThreads ? static_cast<int>(packs) : kThreads;
  return {lanes, one_token ? 1 : kThreads / lanes};
}

__host__ __device__ inline bool takes_one_token(PoolMode mode) {
  return mode == PoolMode::kCls || mode == PoolMode::kLast;
}

struct Span {
  int32_t begin, count;
};

__device__ inline int32_t clamped(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

__device__ inline Span span_of(const int32_t* cu_seqlens, int64_t sequence, int64_t tokens) {
  const int32_t last = static_cast<int32_t>(tokens);
  const int32_t begin = clamped(cu_seqlens[sequence], 0, last);
  return {begin, clamped(cu_seqlens[sequence + 1], begin, last) - begin};
}

__host__ __device__ inline int64_t slot_count(int64_t tokens, int64_t sequences) {
  return tokens / kSplitTokens + sequences;
}

__device__ inline int64_t first_slot(const Span& span, int64_t sequence) {
  return span.begin / kSplitTokens + sequence;
}

// Part of a sequence.
struct Share {
  int64_t sequence;
  Span tokens;  // count 0: nothing to do
};

__device__ inline Share split_of(const int32_t* cu_seqlens, int64_t sequences, int64_t tokens, int64_t slot) {
  int64_t low = 0, high = sequences - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (first_slot(span_of(cu_seqlens, middle, tokens), middle) <= slot) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const Span span = span_of(cu_seqlens, low, tokens);
  const int64_t done = (slot - first_slot(span, low)) * kSplitTokens;
  // Below 0: the offsets do not start at 0, and this slot is that of tokens before the first sequence.
  if (done < 0 || done >= span.count) return {low, {span.begin, 0}};
  const int32_t left = span.count - static_cast<int32_t>(done);
  return {low, {span.begin + static_cast<int32_t>(done), left < kSplitTokens ? left : kSplitTokens}};
}

__device__ inline float* shared_memory() {
  extern __shared__ __align__(16) float pool_shared[];
  return pool_shared;
}

// Floats that a row takes in shared memory: what follows it stays 16-byte aligned.
__host__ __device__ inline int64_t padded(int64_t dim) { return (dim + 3) / 4 * 4; }

// Every thread of the block calls it and gets the sum. scratch: a float for each warp.
__device__ inline float block_sum(float value, float* scratch) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  __syncthreads();  // an earlier sum may still be read
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  float total = 0.0f;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) total += scratch[warp];
  return total;
}

}  // namespace pool_cuda
}  // namespace ance_fast
