// What surrounds the matrix products of a transformer layer at inference, fp32 on the CPU, in place where it can be.
//
//   bias_gelu               x [T, F] <- gelu(x + bias), exact (erf) form
//   bias_residual_layernorm x [T, D] <- layernorm(x + bias + residual) * weight + shift
//   packed_attention        qkv [T, 3 D] + bias -> out [T, D]: each sequence attends to itself, heads of D / heads
//
// The first two read and write each element once, where separate ops would do so three or four times: they are limited
// by memory bandwidth. Attention does 4 L^2 D FLOPs for a sequence of L tokens in registers and L1. `threads` splits rows
// (attention: sequences) over that many threads.
#pragma once

#include <cstdint>

#include "cpu_features.h"

namespace ance_fast {

struct BiasGelu {
  float* x;           // [rows, dim]
  const float* bias;  // [dim]
  int64_t rows, dim;
};

struct BiasResidualLayerNorm {
  float* x;               // [rows, dim]
  const float* bias;      // [dim]
  const float* residual;  // [rows, dim]
  const float* weight;    // [dim]
  const float* shift;     // [dim]
  float eps;
  int64_t rows, dim;
};

struct PackedAttention {
  const float* qkv;           // [tokens, 3 * heads * head_dim]: queries, keys, values
  const float* bias;          // [3 * heads * head_dim]
  const int32_t* cu_seqlens;  // [sequences + 1]
  int64_t tokens, sequences, heads, head_dim;
  float scale;
  float* out;  // [tokens, heads * head_dim]
};

void bias_gelu(const BiasGelu& args, Isa isa, int threads);
void bias_residual_layernorm(const BiasResidualLayerNorm& args, Isa isa, int threads);

// head_dim must be a multiple of 16. Throws std::invalid_argument for that and for bad cu_seqlens.
void packed_attention(const PackedAttention& args, Isa isa, int threads);

}  // namespace ance_fast
