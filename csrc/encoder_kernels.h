// What surrounds the matrix products of a transformer encoder at inference, fp32 on the CPU, in place where it can be.
//
//   embed_layernorm         out [T, D] <- layernorm(words[ids] + positions[position ids] + constant) * weight + shift
//   bias_gelu               x [T, F] <- gelu(x + bias), exact (erf) form
//   bias_residual_layernorm x [T, D] <- layernorm(x + bias + residual) * weight + shift
//   packed_attention        qkv [T, 3 D] + bias -> out [T, D]: each sequence attends to itself, heads of D / heads
//
// The first three read and write each element once, where separate ops would do so three or four times: they are limited
// by memory bandwidth. Attention does 4 L^2 D FLOPs for a sequence of L tokens in registers and the first two caches.
// `threads` splits rows (attention: heads of sequences) over that many threads.
#pragma once

#include <cstdint>

#include "cpu_features.h"

namespace ance_fast {

struct EmbedLayerNorm {
  const int64_t* input_ids;     // [rows], below vocabulary
  const int64_t* position_ids;  // [rows], below longest
  const float* words;           // [vocabulary, dim]
  const float* positions;       // [longest, dim]
  const float* constant;        // [dim]
  const float* weight;          // [dim]
  const float* shift;           // [dim]
  float eps;
  int64_t rows, dim, vocabulary, longest;
  float* out;  // [rows, dim]
};

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

// Throws std::out_of_range for an id that its table does not have, before anything is written.
void embed_layernorm(const EmbedLayerNorm& args, Isa isa, int threads);

void bias_gelu(const BiasGelu& args, Isa isa, int threads);
void bias_residual_layernorm(const BiasResidualLayerNorm& args, Isa isa, int threads);

// head_dim must be a multiple of 16. Throws std::invalid_argument for that and for bad cu_seqlens.
void packed_attention(const PackedAttention& args, Isa isa, int threads);

}  // namespace ance_fast
