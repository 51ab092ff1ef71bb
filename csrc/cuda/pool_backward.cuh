// The backward kernels of pool_normalize: the gradient of a pooled row spread over its tokens, and the sums for weight
// and bias.
#pragma once

#include "cuda/pool_blocks.cuh"
#include "cuda/pool_elements.cuh"

namespace ance_fast {
namespace pool_cuda {

constexpr int kParameterBlocks = 128;  // fixed, so that the order of the sums over sequences is

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

}  // namespace pool_cuda
}  // namespace ance_fast
