// Pooling of packed token rows and normalisation of the pooled row, forward and backward, fp32 on the CPU.
//
//   hidden [T, D], cu_seqlens [B + 1] -> out [B, D]
//
// Reads T*D floats once and writes B*D: limited by memory bandwidth. Every sum has one fixed order that does
// not depend on the instruction set, and products are never contracted, so all instruction sets give the same bits.
#pragma once

#include <cstdint>
#include <string>

#include "cpu_features.h"

namespace ance_fast {

enum class PoolMode { kMean, kCls, kLast, kMax };
enum class PoolNorm { kNone, kL2, kLayerNorm };

PoolMode parse_pool_mode(const std::string& name);
PoolNorm parse_pool_norm(const std::string& name);

struct PoolForward {
  const float* hidden;        // [tokens, dim]
  const int32_t* cu_seqlens;  // [sequences + 1]
  int64_t tokens, sequences, dim;
  PoolMode mode;
  PoolNorm norm;
  const float* weight;  // [dim] or null (ones); layernorm only
  const float* bias;    // [dim] or null (zeros); layernorm only
  float eps;
  float* out;       // [sequences, dim]
  float* pooled;    // [sequences, dim] row before the norm, or null; backward of l2 and layernorm reads it
  float* stats;     // [sequences, 2] or null: l2 (norm, 0), layernorm (mean, 1 / sqrt(variance + eps))
  int32_t* argmax;  // [sequences, dim] token of the maximum (-1: empty sequence); required for max
};

struct PoolBackward {
  const float* grad_out;      // [sequences, dim]
  const int32_t* cu_seqlens;  // [sequences + 1]
  int64_t tokens, sequences, dim;
  PoolMode mode;
  PoolNorm norm;
  const float* weight;    // as in the forward pass
  const float* pooled;    // what the forward pass saved; unused without a norm
  const float* stats;     // what the forward pass saved; unused without a norm
  const int32_t* argmax;  // what the forward pass saved; max only
  float eps;
  float* grad_hidden;  // [tokens, dim], written completely
  float* grad_weight;  // [dim] or null, written completely; layernorm only
  float* grad_bias;    // [dim] or null, written completely; layernorm only
};

// Both throw std::invalid_argument when cu_seqlens does not start at 0, decreases, or does not end at `tokens`.
// `threads` splits the sequences; the result does not depend on it.
void pool_normalize_forward(const PoolForward& args, Isa isa, int threads);
void pool_normalize_backward(const PoolBackward& args, Isa isa, int threads);

}  // namespace ance_fast
