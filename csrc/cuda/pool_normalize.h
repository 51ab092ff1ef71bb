// Pooling of packed token rows and normalisation of the pooled row on the GPU. The semantics are those of the CPU form
// in ../pool_normalize.h; here every matrix has a dtype of its own, and sums are fp32 whatever it is.
//
// All pointers are device addresses (`host_slot`: the device address of page-locked host memory). Offsets are not
// checked, since that would wait for the device; those outside 0 .. tokens are clamped, so that no wrong one reaches
// memory outside the arrays.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "../pool_normalize.h"

namespace ance_fast {

enum class DType { kFloat32, kFloat16, kBFloat16 };

constexpr int64_t kPoolMaxDim = 8192;  // the pooled row lives in the 48 KB of shared memory every launch may have

struct PoolForwardCuda {
  const void* hidden;         // [tokens, dim]
  const int32_t* cu_seqlens;  // [sequences + 1]
  int64_t tokens, sequences, dim;
  PoolMode mode;
  PoolNorm norm;
  DType hidden_dtype, out_dtype, resident_dtype, host_dtype;
  const float* weight;  // [dim] or null (ones); layernorm only
  const float* bias;    // [dim] or null (zeros); layernorm only
  float eps;
  int32_t multiprocessors;       // of the device; 0: long sequences are never split
  void* out;                     // [sequences, dim]
  float* pooled;                 // [sequences, dim] row before the norm, or null
  float* stats;                  // [sequences, 2] or null: l2 (norm, 0), layernorm (mean, 1 / sqrt(variance + eps))
  int32_t* argmax;               // [sequences, dim] token of the maximum (-1: empty sequence); required for max
  void* resident;                // null, or a matrix that takes row b of the result as its row resident_rows[b]
  const int64_t* resident_rows;  // [sequences]; not read without `resident`
  void* host_slot;               // null, or [sequences, dim] that takes the result once more
  void* workspace;               // pool_forward_workspace bytes, 16-byte aligned; null when that is 0
  int64_t workspace_bytes;
};

struct PoolBackwardCuda {
  const void* grad_out;       // [sequences, dim]
  const int32_t* cu_seqlens;  // [sequences + 1]
  int64_t tokens, sequences, dim;
  PoolMode mode;
  PoolNorm norm;
  DType grad_out_dtype, grad_hidden_dtype;
  const float* weight;    // as in the forward pass
  const float* pooled;    // what the forward pass saved; unused without a norm
  const float* stats;     // what the forward pass saved; unused without a norm
  const int32_t* argmax;  // what the forward pass saved; max only
  float eps;
  int32_t multiprocessors;
  void* grad_hidden;   // [tokens, dim], written completely
  float* grad_weight;  // [dim], written completely, or null; layernorm only
  float* grad_bias;    // [dim], written completely; null exactly when grad_weight is
  void* workspace;     // pool_backward_workspace bytes, 16-byte aligned; null when that is 0
  int64_t workspace_bytes;
};

// Bytes of workspace for these sizes. The contents need not survive the launch, nor be set before it.
int64_t pool_forward_workspace(int64_t tokens, int64_t sequences, int64_t dim, PoolMode mode, int32_t multiprocessors);
int64_t pool_backward_workspace(int64_t sequences, int64_t dim, bool with_parameters);

// Queue the work on `stream` and return at once. cudaErrorInvalidValue: a size out of range (dim over kPoolMaxDim), a
// required pointer that is null, or too small a workspace.
cudaError_t pool_normalize_forward_cuda(const PoolForwardCuda& args, cudaStream_t stream);
cudaError_t pool_normalize_backward_cuda(const PoolBackwardCuda& args, cudaStream_t stream);

}  // namespace ance_fast
