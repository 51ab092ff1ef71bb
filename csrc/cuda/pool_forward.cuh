// The forward kernels of pool_normalize: tokens to a pooled row, its norm, and the copies of it.
#pragma once

#include <cmath>

#include "cuda/pool_blocks.cuh"
#include "cuda/pool_elements.cuh"

namespace ance_fast {
namespace pool_cuda {

// The first token that holds the maximum wins; NaN counts as larger than every number.
__device__ inline bool beats(float x, int32_t token, float best, int32_t best_token) {
  const bool x_nan = x != x, best_nan = best != best;
  return x > best || (x_nan && !best_nan) || ((x == best || (x_nan && best_nan)) && token < best_token);
}

// What a thread keeps of its tokens for kWidth columns. `tokens` disappears from the sum's kernels.
template <int kWidth, bool kMax>
struct Accumulator {
  float values[kWidth];
  int32_t tokens[kWidth];

  template <typename In>
  __device__ void start(const Pack<In, kWidth>& pack, int32_t token) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      values[i] = to_float(pack.values[i]);
      tokens[i] = token;
    }
  }

  template <typename In>
  __device__ void add(const Pack<In, kWidth>& pack, int32_t token) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float x = to_float(pack.values[i]);
      if (!kMax) {
        values[i] += x;
      } else if (x > values[i] || (x != x && values[i] == values[i])) {
        values[i] = x;
        tokens[i] = token;
      }
    }
  }
};

// The tokens group, group + groups, ... of `span` for the columns at `column`; there is at least one.
template <typename In, int kWidth, bool kMax>
__device__ inline Accumulator<kWidth, kMax> scan_tokens(const In* hidden, int64_t dim, const Span& span, int group,
                                                        int groups, int64_t column) {
  const In* at = hidden + (static_cast<int64_t>(span.begin) + group) * dim + column;
  const int64_t step = groups * dim;
  Accumulator<kWidth, kMax> result;
  result.start(load_pack<kWidth>(at), span.begin + group);
  int32_t t = group + groups;
  at += step;
  for (; t + (kInFlight - 1) * groups < span.count; t += kInFlight * groups, at += kInFlight * step) {
    Pack<In, kWidth> packs[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) packs[i] = load_pack<kWidth>(at + i * step);
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) result.add(packs[i], span.begin + t + i * groups);
  }
  for (; t < span.count; t += groups, at += step) result.add(load_pack<kWidth>(at), span.begin + t);
  return result;
}

template <bool kMax>
__device__ inline void merge(float x, int32_t token, float* value, int32_t* best) {
  if (!kMax) {
    *value += x;
  } else if (beats(x, token, *value, *best)) {
    *value = x;
    *best = token;
  }
}

// Sum or maximum of at most kSplitTokens tokens, by the whole block: replaces row (and index) when `first`, else is
// merged into it. partials: shared_partials() of shared memory. Ends without a barrier: thread t owns the columns t,
// t + blockDim.x, ... of the row here and in finish_row, since several tiles come only with a full block, whose size
// divides a tile.
template <typename In, int kWidth, bool kMax>
__device__ inline void reduce_split(const PoolForwardCuda& p, const Span& span, bool first, float* row, int32_t* index,
                                    float* partials) {
  const Layout layout = layout_of(p.dim, kWidth, takes_one_token(p.mode));
  const int lane = threadIdx.x % layout.lanes, group = threadIdx.x / layout.lanes;
  const int used_groups = layout.groups < span.count ? layout.groups : span.count;
  const int stride = layout.lanes * kWidth;
  int32_t* partial_tokens = reinterpret_cast<int32_t*>(partials + layout.groups * stride);
  for (int64_t tile = 0; tile < p.dim; tile += stride) {
    const int64_t column = tile + lane * kWidth;
    __syncthreads();  // the partials of the tile or split before may still be read
    if (group < used_groups && column < p.dim) {
      const Accumulator<kWidth, kMax> mine = scan_tokens<In, kWidth, kMax>(
          static_cast<const In*>(p.hidden), p.dim, span, group, layout.groups, column);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        partials[group * stride + lane * kWidth + i] = mine.values[i];
        if (kMax) partial_tokens[group * stride + lane * kWidth + i] = mine.tokens[i];
      }
    }
    __syncthreads();
    const int width = p.dim - tile < stride ? static_cast<int>(p.dim - tile) : stride;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
      float value = partials[i];
      int32_t token = kMax ? partial_tokens[i] : 0;
      for (int g = 1; g < used_groups; ++g) {
        merge<kMax>(partials[g * stride + i], kMax ? partial_tokens[g * stride + i] : 0, &value, &token);
      }
      const int64_t d = tile + i;
      if (!first) {
        float before = row[d];
        int32_t before_token = kMax ? index[d] : 0;
        merge<kMax>(value, token, &before, &before_token);
        value = before;
        token = before_token;
      }
      row[d] = value;
      if (kMax) index[d] = token;
    }
  }
}

__device__ inline float squared_norm(const float* row, int64_t dim, float* scratch) {
  float sum = 0.0f;
  for (int64_t d = threadIdx.x; d < dim; d += blockDim.x) sum += row[d] * row[d];
  return block_sum(sum, scratch);
}

__device__ inline float2 moments(const float* row, int64_t dim, float* scratch) {
  float sum = 0.0f;
  for (int64_t d = threadIdx.x; d < dim; d += blockDim.x) sum += row[d];
  const float mean = block_sum(sum, scratch) / static_cast<float>(dim);
  float squares = 0.0f;
  for (int64_t d = threadIdx.x; d < dim; d += blockDim.x) squares += (row[d] - mean) * (row[d] - mean);
  return {mean, block_sum(squares, scratch) / static_cast<float>(dim)};
}

// Normalises `row` in place and returns what `stats` takes. A thread touches only its own columns of the row.
__device__ inline float2 normalize_row(const PoolForwardCuda& p, float* row, float* scratch) {
  if (p.norm == PoolNorm::kNone) return {0.0f, 0.0f};
  if (p.norm == PoolNorm::kL2) {
    const float length = sqrtf(squared_norm(row, p.dim, scratch));
    const float divisor = length < p.eps ? p.eps : length;  // NaN stays NaN
    for (int64_t d = threadIdx.x; d < p.dim; d += blockDim.x) row[d] /= divisor;
    return {length, 0.0f};
  }
  const float2 moment = moments(row, p.dim, scratch);
  const float rstd = 1.0f / sqrtf(moment.y + p.eps);
  for (int64_t d = threadIdx.x; d < p.dim; d += blockDim.x) {
    float x = (row[d] - moment.x) * rstd;
    if (p.weight) x *= p.weight[d];
    if (p.bias) x += p.bias[d];
    row[d] = x;
  }
  return {moment.x, rstd};
}

// From the sum or maximum in `row` (of any content when count is 0) to everything that the sequence has to write.
// The thread that wrote a column of `row` is the one that goes on with it here.
__device__ inline void finish_row(const PoolForwardCuda& p, int64_t sequence, int32_t count, float* row,
                                  float* scratch) {
  for (int64_t d = threadIdx.x; d < p.dim; d += blockDim.x) {
    if (count == 0) {
      row[d] = 0.0f;
      if (p.mode == PoolMode::kMax) p.argmax[sequence * p.dim + d] = -1;
    } else if (p.mode == PoolMode::kMean) {
      row[d] /= static_cast<float>(count);
    }
    if (p.pooled) p.pooled[sequence * p.dim + d] = row[d];
  }
  const float2 stats = count == 0 ? float2{0.0f, 0.0f} : normalize_row(p, row, scratch);
  if (p.stats && threadIdx.x == 0) {
    p.stats[2 * sequence] = stats.x;
    p.stats[2 * sequence + 1] = stats.y;
  }
  __syncthreads();
  store_row(row, p.out, p.out_dtype, sequence, p.dim);
  if (p.resident) store_row(row, p.resident, p.resident_dtype, p.resident_rows[sequence], p.dim);
  if (p.host_slot) store_row(row, p.host_slot, p.host_dtype, sequence, p.dim);
}

// One sequence a block: pools, normalises and writes it.
//   FLOPs: T*D additions (max: comparisons), about 4*B*D for the norm.
//   Minimal bytes: T*D*sizeof(In) read (cls, last: B of the T rows), B*D*sizeof(Out) written; nothing in between.
//   Expected limiter: memory bandwidth, at 0.25 to 0.5 FLOP a byte. Not yet measured.
template <typename In, int kWidth, bool kMax>
__global__ void __launch_bounds__(kThreads) pool_rows(const PoolForwardCuda p) {
  float* row = shared_memory();
  float* partials = row + padded(p.dim);
  const int64_t sequence = blockIdx.x;
  const Span span = span_of(p.cu_seqlens, sequence, p.tokens);
  Span used = span;
  if (takes_one_token(p.mode) && span.count > 0) {
    used = {p.mode == PoolMode::kCls ? span.begin : span.begin + span.count - 1, 1};
  }
  int32_t* index = kMax ? p.argmax + sequence * p.dim : nullptr;
  for (int32_t done = 0; done < used.count; done += kSplitTokens) {
    const int32_t left = used.count - done;
    const Span split = {used.begin + done, left < kSplitTokens ? left : kSplitTokens};
    reduce_split<In, kWidth, kMax>(p, split, done == 0, row, index, partials);
  }
  finish_row(p, sequence, span.count, row, partials);
}

// Rows of the workspace: the sums of all slots, then (max) their tokens.
__device__ inline float* partial_row(const PoolForwardCuda& p, int64_t slot) {
  return static_cast<float*>(p.workspace) + slot * p.dim;
}

__device__ inline int32_t* partial_index(const PoolForwardCuda& p, int64_t slot) {
  return static_cast<int32_t*>(p.workspace) + (slot_count(p.tokens, p.sequences) + slot) * p.dim;
}

// One split of a long sequence a block: its sum or maximum into the workspace.
//   FLOPs: T*D. Minimal bytes: T*D*sizeof(In) read, T/256*D*4 written (max: 8).
//   Expected limiter: memory bandwidth; with few tokens, the latency of one block. Not yet measured.
template <typename In, int kWidth, bool kMax>
__global__ void __launch_bounds__(kThreads) pool_splits(const PoolForwardCuda p) {
  const int64_t slot = blockIdx.x;
  const Share share = split_of(p.cu_seqlens, p.sequences, p.tokens, slot);
  if (share.tokens.count == 0) return;
  int32_t* index = kMax ? partial_index(p, slot) : nullptr;
  reduce_split<In, kWidth, kMax>(p, share.tokens, true, partial_row(p, slot), index, shared_memory());
}

// One sequence a block: merges its splits in order, normalises and writes. The block is as large as that of pool_rows,
// so that the norm's sums have the same order too.
//   FLOPs: T/256*D. Minimal bytes: T/256*D*4 read (max: 8), mostly from L2; B*D*sizeof(Out) written.
//   Expected limiter: latency; B blocks are too few to fill the machine. Not yet measured.
template <bool kMax>
__global__ void __launch_bounds__(kThreads) combine_splits(const PoolForwardCuda p) {
  float* row = shared_memory();
  const int64_t sequence = blockIdx.x;
  const Span span = span_of(p.cu_seqlens, sequence, p.tokens);
  const int64_t first = first_slot(span, sequence);
  const int64_t splits = (static_cast<int64_t>(span.count) + kSplitTokens - 1) / kSplitTokens;
  for (int64_t d = threadIdx.x; splits > 0 && d < p.dim; d += blockDim.x) {
    float value = partial_row(p, first)[d];
    int32_t token = kMax ? partial_index(p, first)[d] : 0;
    for (int64_t s = 1; s < splits; ++s) {
      merge<kMax>(partial_row(p, first + s)[d], kMax ? partial_index(p, first + s)[d] : 0, &value, &token);
    }
    row[d] = value;
    if (kMax) p.argmax[sequence * p.dim + d] = token;
  }
  finish_row(p, sequence, span.count, row, row + padded(p.dim));
}

}  // namespace pool_cuda
}  // namespace ance_fast
