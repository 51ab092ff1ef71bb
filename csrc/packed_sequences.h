// What the kernels of packed sequences ask of their arguments. All throw std::invalid_argument.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace ance_fast {

// cu_seqlens [sequences + 1] must rise from 0 to the number of tokens of the array called `packed`, so that no kernel
// reads outside it. Returns the length of the longest sequence.
inline int64_t check_cu_seqlens(const int32_t* cu_seqlens, int64_t sequences, int64_t tokens, const char* packed) {
  if (cu_seqlens[0] != 0) {
    throw std::invalid_argument("cu_seqlens must start with 0, got " + std::to_string(cu_seqlens[0]));
  }
  int64_t longest = 0;
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t length = int64_t{cu_seqlens[b + 1]} - cu_seqlens[b];
    if (length < 0) throw std::invalid_argument("cu_seqlens decreases at entry " + std::to_string(b + 1));
    longest = std::max(longest, length);
  }
  if (cu_seqlens[sequences] != tokens) {
    throw std::invalid_argument("cu_seqlens ends with " + std::to_string(cu_seqlens[sequences]) + ", but " + packed +
                                " has " + std::to_string(tokens) + " tokens");
  }
  return longest;
}

// The attention kernels go through a head in whole registers of up to 16 floats.
inline void check_head_dim(int64_t head_dim) {
  if (head_dim % 16 == 0) return;
  throw std::invalid_argument("head_dim is " + std::to_string(head_dim) + "; it must be a multiple of 16");
}

}  // namespace ance_fast
