// Attention of one query a sequence to the sequence's tokens, fp32 on the CPU: the last layer of an encoder whose first
// tokens alone are read.
//
//   q [B, D], kv [T, 2 D] -> out [B, D], heads of D / heads; an empty sequence gives zeros
//
// 4 L D FLOPs for a sequence of L tokens, whose keys and values are read once: limited by memory bandwidth. `threads`
// splits sequences over that many threads.
#pragma once

#include <cstdint>

#include "cpu_features.h"

namespace ance_fast {

struct ClsAttention {
  const float* q;             // [sequences, heads * head_dim]
  const float* kv;            // [tokens, 2 * heads * head_dim]: keys, values
  const int32_t* cu_seqlens;  // [sequences + 1]
  int64_t tokens, sequences, heads, head_dim;
  float scale;
  float* out;  // [sequences, heads * head_dim]
};

// head_dim must be a multiple of 16. Throws std::invalid_argument for that and for bad cu_seqlens.
void cls_attention(const ClsAttention& args, Isa isa, int threads);

}  // namespace ance_fast
