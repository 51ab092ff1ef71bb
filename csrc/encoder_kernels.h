// What surrounds the matrix products of a transformer encoder at inference, but for attention: fp32 on the CPU, in
// place where it can be.
//
//   embed_layernorm         out [T, D] <- layernorm(words[ids] + positions[position ids] + constant) * weight + shift
//   bias_gelu               x [T, F] <- gelu(x + bias), exact (erf) form
//   bias_residual_layernorm x [T, D] <- layernorm(x + bias + residual) * weight + shift
//
// They read and write each element once, where separate ops would do so three or four times, and are limited by memory
// bandwidth. `threads` splits rows over that many threads.
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

// Throws std::out_of_range for an id that its table does not have, before anything is written.
void embed_layernorm(const EmbedLayerNorm& args, Isa isa, int threads);

void bias_gelu(const BiasGelu& args, Isa isa, int threads);
void bias_residual_layernorm(const BiasResidualLayerNorm& args, Isa isa, int threads);

}  // namespace ance_fast
