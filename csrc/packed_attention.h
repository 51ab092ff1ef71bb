// Attention of the sequences of a packed batch to themselves, fp32 on the CPU.
//
//   qkv [T, 3 D] + bias -> out [T, D], heads of D / heads; nothing is written for an empty sequence
//
// 4 L^2 D FLOPs for a sequence of L tokens, in registers and the first two caches. `threads` splits heads of sequences
// over that many threads.
#pragma once

#include <cstdint>

#include "cpu_features.h"

namespace ance_fast {

struct PackedAttention {
  const float* qkv;           // [tokens, 3 * heads * head_dim]: queries, keys, values
  const float* bias;          // [3 * heads * head_dim]
  const int32_t* cu_seqlens;  // [sequences + 1]
  int64_t tokens, sequences, heads, head_dim;
  float scale;
  float* out;  // [tokens, heads * head_dim]
};

// head_dim must be a multiple of 16. Throws std::invalid_argument for that and for bad cu_seqlens.
void packed_attention(const PackedAttention& args, Isa isa, int threads);

}  // namespace ance_fast
