// The launches of pool_normalize. Compiled by nvcc for the GPU, and by g++ with tests/native/host_cuda/host_cuda.h for
// tests without one, so nothing here launches by itself: the `run_` functions get a launcher, called as
// launch(kernel, grid, block, shared_bytes, arguments).
#pragma once

#include <type_traits>

#include "cuda/pool_backward.cuh"
#include "cuda/pool_forward.cuh"

namespace ance_fast {
namespace pool_cuda {

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
