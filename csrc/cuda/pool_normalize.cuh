// Kernels of pool_normalize and the choice of their launch shapes. Compiled by nvcc for the GPU, and by g++ with
// tests/native/host_cuda/host_cuda.h for tests without one, so nothing here launches by itself: the `run_` functions
// get a launcher, called as launch(kernel, grid, block, shared_bytes, arguments).
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

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "cuda/pool_normalize.h"

namespace ance_fast {
namespace pool_cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kSplitTokens = 256;
constexpr int kInFlight = 4;            // rows a thread loads before it uses the first
constexpr int kBlocksPerProcessor = 4;  // sequences per multiprocessor that keep it busy
constexpr int kParameterBlocks = 128;   // fixed, so that the order of the sums over sequences is

// ---- Elements and packs of them ---------------------------------------------------------------------------------

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void from_float(float x, float* out) { *out = x; }
__device__ inline void from_float(float x, __half* out) { *out = __float2half_rn(x); }
__device__ inline void from_float(float x, __nv_bfloat16* out) { *out = __float2bfloat16_rn(x); }

template <int kBytes>
struct Raw;
template <>
struct Raw<2> {
  using Type = uint16_t;
};
template <>
struct Raw<4> {
  using Type = uint32_t;
};
template <>
struct Raw<8> {
  using Type = uint2;
};
template <>
struct Raw<16> {
  using Type = uint4;
};

template <typename T, int kWidth>
struct Pack {
  T values[kWidth];
};

// Through one register-sized type, so that it is one memory access.
template <int kWidth, typename T>
__device__ inline Pack<T, kWidth> load_pack(const T* from) {
  const auto raw = *reinterpret_cast<const typename Raw<sizeof(T) * kWidth>::Type*>(from);
  Pack<T, kWidth> pack;
  memcpy(&pack, &raw, sizeof(raw));
  return pack;
}

template <int kWidth, typename T>
__device__ inline void store_pack(const Pack<T, kWidth>& pack, T* to) {
  typename Raw<sizeof(T) * kWidth>::Type raw;
  memcpy(&raw, &pack, sizeof(raw));
  *reinterpret_cast<decltype(raw)*>(to) = raw;
}

__device__ inline float load_element(const void* base, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat16: return to_float(static_cast<const __half*>(base)[i]);
    case DType::kBFloat16: return to_float(static_cast<const __nv_bfloat16*>(base)[i]);
    default: return static_cast<const float*>(base)[i];
  }
}

template <int kWidth, typename T>
__device__ inline void store_row_packs(const float* row, T* to, int64_t dim) {
  for (int64_t d = threadIdx.x * kWidth; d < dim; d += blockDim.x * kWidth) {
    Pack<T, kWidth> pack;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) from_float(row[d + i], &pack.values[i]);
    store_pack(pack, to + d);
  }
}

template <typename T>
__device__ inline void store_row_as(const float* row, T* to, int64_t dim) {
  constexpr int kWidth = 4;
  if (dim % kWidth == 0 && reinterpret_cast<uintptr_t>(to) % (kWidth * sizeof(T)) == 0) {
    store_row_packs<kWidth>(row, to, dim);
  } else {
    store_row_packs<1>(row, to, dim);
  }
}

// By the whole block; `row` must be visible to all its threads.
__device__ inline void store_row(const float* row, void* matrix, DType dtype, int64_t index, int64_t dim) {
  switch (dtype) {
    case DType::kFloat16: store_row_as(row, static_cast<__half*>(matrix) + index * dim, dim); break;
    case DType::kBFloat16: store_row_as(row, static_cast<__nv_bfloat16*>(matrix) + index * dim, dim); break;
    default: store_row_as(row, static_cast<float*>(matrix) + index * dim, dim); break;
  }
}

// ---- Threads, tokens and splits ---------------------------------------------------------------------------------

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

// ---- Forward ----------------------------------------------------------------------------------------------------

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

// ---- Backward ---------------------------------------------------------------------------------------------------

__device__ inline float grad_out_at(const PoolBackwardCuda& p, int64_t sequence, int64_t d) {
  return load_element(p.grad_out, p.grad_out_dtype, sequence * p.dim + d);
}

__device__ inline void l2_gradient(const PoolBackwardCuda& p, int64_t sequence, float* gradient, float* scratch) {
  const float length = p.stats[2 * sequence];
  const float* x = p.pooled + sequence * p.dim;
  if (length < p.eps) {  // below eps the divisor is a constant
    for (int64_t d = threadIdx.x; d < p.dim; d += blockDim.x) gradient[d] = grad_out_at(p, sequence, d) / p.eps;
    return;
  }
  float sum = 0.0f;
  for (int64_t d = threadIdx.x; d < p.dim; d += blockDim.x) {
    gradient[d] = grad_out_at(p, sequence, d);
    sum += x[d] / length * gradient[d];
  }
  const float along = block_sum(sum, scratch);
  for (int64_t d = threadIdx.x; d < p.dim; d += blockDim.x) {
    gradient[d] = (gradient[d] - x[d] / length * along) / length;
  }
}

__device__ inline void layernorm_gradient(const PoolBackwardCuda& p, int64_t sequence, float* gradient,
                                          float* scratch) {
  const float mean = p.stats[2 * sequence], rstd = p.stats[2 * sequence + 1];
  const float* x = p.pooled + sequence * p.dim;
  float sum = 0.0f, product = 0.0f;
  for (int64_t d = threadIdx.x; d < p.dim; d += blockDim.x) {
    float g = grad_out_at(p, sequence, d);
    if (p.weight) g *= p.weight[d];
    gradient[d] = g;
    sum += g;
    product += g * ((x[d] - mean) * rstd);
  }
  const float mean_g = block_sum(sum, scratch) / static_cast<float>(p.dim);
  const float mean_gx = block_sum(product, scratch) / static_cast<float>(p.dim);
  for (int64_t d = threadIdx.x; d < p.dim; d += blockDim.x) {
    gradient[d] = rstd * (gradient[d] - mean_g - (x[d] - mean) * rstd * mean_gx);
  }
}

// Gradient of each token that the pooled row is made of. A thread writes only its own columns.
__device__ inline void token_gradient(const PoolBackwardCuda& p, int64_t sequence, float* gradient, float* scratch) {
  if (p.norm == PoolNorm::kL2) {
    l2_gradient(p, sequence, gradient, scratch);
  } else if (p.norm == PoolNorm::kLayerNorm) {
    layernorm_gradient(p, sequence, gradient, scratch);
  } else {
    for (int64_t d = threadIdx.x; d < p.dim; d += blockDim.x) gradient[d] = grad_out_at(p, sequence, d);
  }
  if (p.mode != PoolMode::kMean) return;
  const float count = static_cast<float>(span_of(p.cu_seqlens, sequence, p.tokens).count);
  for (int64_t d = threadIdx.x; d < p.dim; d += blockDim.x) gradient[d] /= count;
}

// The token that gets the gradient of column d; -1 when argmax does not name one of the sequence.
__device__ inline int32_t chosen_token(const PoolBackwardCuda& p, int64_t sequence, const Span& span, int64_t d) {
  if (p.mode == PoolMode::kCls) return span.begin;
  if (p.mode == PoolMode::kLast) return span.begin + span.count - 1;
  return p.argmax[sequence * p.dim + d];
}

// Writes kWidth columns of the tokens group, group + groups, ... of the share.
template <typename Hidden, int kWidth, bool kMean>
__device__ inline void spread_columns(const PoolBackwardCuda& p, const Share& share, const float* gradient, int group,
                                      int groups, int64_t column) {
  Pack<Hidden, kWidth> values;
  Hidden zero;
  from_float(0.0f, &zero);
  int32_t chosen[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    from_float(gradient[column + i], &values.values[i]);
    if (!kMean) {
      chosen[i] = chosen_token(p, share.sequence, span_of(p.cu_seqlens, share.sequence, p.tokens), column + i);
    }
  }
  for (int32_t t = group; t < share.tokens.count; t += groups) {
    const int32_t token = share.tokens.begin + t;
    Pack<Hidden, kWidth> pack = values;
#pragma unroll
    for (int i = 0; !kMean && i < kWidth; ++i) {
      if (chosen[i] != token) pack.values[i] = zero;
    }
    store_pack(pack, static_cast<Hidden*>(p.grad_hidden) + token * p.dim + column);
  }
}

// Gradient of the hidden states: a sequence a block (`split`: a split of one), which works out the gradient of the
// pooled row, again in each split of it, and writes it to its tokens. kMean: every token gets it; else, per column,
// one.
//   FLOPs: about 10*B*D. Minimal bytes: T*D*sizeof(Hidden) written, B*D*(sizeof(Out) + 4) read.
//   Expected limiter: the bandwidth of writes. Not yet measured.
template <typename Hidden, int kWidth, bool kMean>
__global__ void __launch_bounds__(kThreads) spread_gradient(const PoolBackwardCuda p, const bool split) {
  const int64_t block = blockIdx.x;
  const Share share = split ? split_of(p.cu_seqlens, p.sequences, p.tokens, block)
                            : Share{block, span_of(p.cu_seqlens, block, p.tokens)};
  if (share.tokens.count == 0) return;
  float* gradient = shared_memory();
  token_gradient(p, share.sequence, gradient, gradient + padded(p.dim));
  __syncthreads();
  const Layout layout = layout_of(p.dim, kWidth, false);
  const int lane = threadIdx.x % layout.lanes, group = threadIdx.x / layout.lanes;
  if (group >= layout.groups) return;
  for (int64_t column = lane * kWidth; column < p.dim; column += layout.lanes * kWidth) {
    spread_columns<Hidden, kWidth, kMean>(p, share, gradient, group, layout.groups, column);
  }
}

// Part of the gradients of weight and bias: block (x, y) adds up the sequences y, y + gridDim.y, ... for its columns.
// A second kernel adds the parts in order, where atomics would add them in any.
//   FLOPs: 5*B*D. Minimal bytes: B*D*(sizeof(Out) + 4) read.
//   Expected limiter: memory bandwidth, or latency below about 2000 sequences. Not yet measured.
__global__ void __launch_bounds__(kThreads) parameter_partials(const PoolBackwardCuda p) {
  const int64_t d = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (d >= p.dim) return;
  float weight = 0.0f, bias = 0.0f;
  for (int64_t sequence = blockIdx.y; sequence < p.sequences; sequence += gridDim.y) {
    if (span_of(p.cu_seqlens, sequence, p.tokens).count == 0) continue;
    const float g = grad_out_at(p, sequence, d);
    weight += g * ((p.pooled[sequence * p.dim + d] - p.stats[2 * sequence]) * p.stats[2 * sequence + 1]);
    bias += g;
  }
  float* partials = static_cast<float*>(p.workspace);
  partials[blockIdx.y * p.dim + d] = weight;
  partials[(gridDim.y + blockIdx.y) * p.dim + d] = bias;
}

// The gradients of weight and bias from their parts, a thread a column.
//   FLOPs: 256*D. Minimal bytes: 1024*D read, from L2. Expected limiter: latency. Not yet measured.
__global__ void __launch_bounds__(kThreads) sum_parameters(const PoolBackwardCuda p, const int parts) {
  const int64_t d = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (d >= p.dim) return;
  const float* partials = static_cast<const float*>(p.workspace);
  float weight = 0.0f, bias = 0.0f;
  for (int part = 0; part < parts; ++part) {
    weight += partials[part * p.dim + d];
    bias += partials[(parts + part) * p.dim + d];
  }
  p.grad_weight[d] = weight;
  p.grad_bias[d] = bias;
}

// ---- Launch shapes ----------------------------------------------------------------------------------------------

inline bool splits_sequences(int64_t tokens, int64_t sequences, int32_t multiprocessors) {
  return sequences < static_cast<int64_t>(kBlocksPerProcessor) * multiprocessors && tokens > sequences * kSplitTokens;
}

inline unsigned threads_of(const Layout& layout) {
  return static_cast<unsigned>((layout.lanes * layout.groups + kWarp - 1) / kWarp * kWarp);
}

inline size_t row_bytes(int64_t dim) { return static_cast<size_t>(padded(dim)) * sizeof(float); }

constexpr size_t kScratchBytes = kThreads / kWarp * sizeof(float);

inline size_t shared_partials(const Layout& layout, int width, bool max) {
  const size_t bytes = static_cast<size_t>(layout.lanes) * layout.groups * width * (max ? 8 : 4);
  return bytes < kScratchBytes ? kScratchBytes : bytes;
}

inline int64_t forward_workspace(int64_t tokens, int64_t sequences, int64_t dim, PoolMode mode,
                                 int32_t multiprocessors) {
  if (takes_one_token(mode) || !splits_sequences(tokens, sequences, multiprocessors)) return 0;
  return slot_count(tokens, sequences) * dim * (mode == PoolMode::kMax ? 8 : 4);
}

inline int64_t parameter_blocks(int64_t sequences) {
  return sequences < 1 ? 1 : sequences < kParameterBlocks ? sequences : kParameterBlocks;
}

inline int64_t backward_workspace(int64_t sequences, int64_t dim, bool with_parameters) {
  return with_parameters ? 2 * parameter_blocks(sequences) * dim * static_cast<int64_t>(sizeof(float)) : 0;
}

inline bool valid_sizes(int64_t tokens, int64_t sequences, int64_t dim) {
  return tokens >= 0 && tokens <= INT32_MAX && sequences >= 0 && slot_count(tokens, sequences) <= INT32_MAX &&
         dim >= 1 && dim <= kPoolMaxDim;
}

// Arrays with a row a sequence may be null when there is none: that is how torch represents them.
inline bool valid(const PoolForwardCuda& p) {
  const bool complete = p.sequences == 0 || ((p.mode != PoolMode::kMax || p.argmax != nullptr) &&
                                             (p.resident == nullptr || p.resident_rows != nullptr));
  return complete && valid_sizes(p.tokens, p.sequences, p.dim) &&
         p.workspace_bytes >= forward_workspace(p.tokens, p.sequences, p.dim, p.mode, p.multiprocessors);
}

inline bool valid(const PoolBackwardCuda& p) {
  const bool complete =
      p.sequences == 0 || ((p.mode != PoolMode::kMax || p.argmax != nullptr) &&
                           (p.norm == PoolNorm::kNone || (p.pooled != nullptr && p.stats != nullptr)));
  return complete && valid_sizes(p.tokens, p.sequences, p.dim) &&
         (p.grad_weight == nullptr) == (p.grad_bias == nullptr) &&
         (p.grad_weight == nullptr || p.norm == PoolNorm::kLayerNorm) &&
         p.workspace_bytes >= backward_workspace(p.sequences, p.dim, p.grad_weight != nullptr);
}

template <typename T>
struct Tag {
  using Type = T;
};

// action(tag of the element type, tag of the pack width): 16 bytes where every row starts on such a boundary, else
// one element.
template <typename T, typename Action>
cudaError_t with_width(const void* base, int64_t dim, const Action& action) {
  constexpr int kWidth = 16 / sizeof(T);
  const bool aligned = dim % kWidth == 0 && reinterpret_cast<uintptr_t>(base) % 16 == 0;
  return aligned ? action(Tag<T>{}, std::integral_constant<int, kWidth>{})
                 : action(Tag<T>{}, std::integral_constant<int, 1>{});
}

template <typename Action>
cudaError_t with_elements(DType dtype, const void* base, int64_t dim, const Action& action) {
  switch (dtype) {
    case DType::kFloat16: return with_width<__half>(base, dim, action);
    case DType::kBFloat16: return with_width<__nv_bfloat16>(base, dim, action);
    default: return with_width<float>(base, dim, action);
  }
}

template <typename In, int kWidth, bool kMax, typename Launch>
cudaError_t launch_forward(const PoolForwardCuda& p, const Launch& launch) {
  const Layout layout = layout_of(p.dim, kWidth, takes_one_token(p.mode));
  const dim3 block(threads_of(layout)), rows(static_cast<unsigned>(p.sequences));
  const size_t partials = shared_partials(layout, kWidth, kMax);
  if (forward_workspace(p.tokens, p.sequences, p.dim, p.mode, p.multiprocessors) == 0) {
    return launch(pool_rows<In, kWidth, kMax>, rows, block, row_bytes(p.dim) + partials, p);
  }
  const dim3 slots(static_cast<unsigned>(slot_count(p.tokens, p.sequences)));
  const cudaError_t status = launch(pool_splits<In, kWidth, kMax>, slots, block, partials, p);
  if (status != cudaSuccess) return status;
  return launch(combine_splits<kMax>, rows, block, row_bytes(p.dim) + kScratchBytes, p);
}

template <typename Launch>
cudaError_t run_forward(const PoolForwardCuda& p, const Launch& launch) {
  if (!valid(p)) return cudaErrorInvalidValue;
  if (p.sequences == 0) return cudaSuccess;
  return with_elements(p.hidden_dtype, p.hidden, p.dim, [&](auto tag, auto width) {
    using In = typename decltype(tag)::Type;
    constexpr int kWidth = decltype(width)::value;
    return p.mode == PoolMode::kMax ? launch_forward<In, kWidth, true>(p, launch)
                                    : launch_forward<In, kWidth, false>(p, launch);
  });
}

template <typename Hidden, int kWidth, typename Launch>
cudaError_t launch_spread(const PoolBackwardCuda& p, const Launch& launch) {
  const bool split = splits_sequences(p.tokens, p.sequences, p.multiprocessors);
  const dim3 blocks(static_cast<unsigned>(split ? slot_count(p.tokens, p.sequences) : p.sequences));
  const dim3 block(threads_of(layout_of(p.dim, kWidth, false)));
  const size_t shared = row_bytes(p.dim) + kScratchBytes;
  return p.mode == PoolMode::kMean ? launch(spread_gradient<Hidden, kWidth, true>, blocks, block, shared, p, split)
                                   : launch(spread_gradient<Hidden, kWidth, false>, blocks, block, shared, p, split);
}

template <typename Launch>
cudaError_t launch_parameters(const PoolBackwardCuda& p, const Launch& launch) {
  const dim3 block(threads_of(layout_of(p.dim, 1, true)));
  const unsigned columns = static_cast<unsigned>((p.dim + block.x - 1) / block.x);
  const unsigned parts = static_cast<unsigned>(parameter_blocks(p.sequences));
  const cudaError_t status = launch(parameter_partials, dim3(columns, parts), block, size_t{0}, p);
  if (status != cudaSuccess) return status;
  return launch(sum_parameters, dim3(columns), block, size_t{0}, p, static_cast<int>(parts));
}

template <typename Launch>
cudaError_t run_backward(const PoolBackwardCuda& p, const Launch& launch) {
  if (!valid(p)) return cudaErrorInvalidValue;
  if (p.grad_weight != nullptr) {
    const cudaError_t status = launch_parameters(p, launch);
    if (status != cudaSuccess) return status;
  }
  if (p.sequences == 0) return cudaSuccess;
  return with_elements(p.grad_hidden_dtype, p.grad_hidden, p.dim, [&](auto tag, auto width) {
    return launch_spread<typename decltype(tag)::Type, decltype(width)::value>(p, launch);
  });
}

}  // namespace pool_cuda
}  // namespace ance_fast
