// ANCE's pairwise loss and its gradients, fp32 on the CPU.
//
//   q, pos [B, D], neg [B, H, D]  ->  mean over rows of the mean over a row's valid negatives of softplus(s q.(n - p))
//
// A row is finished before the next one begins: its negatives come from memory for their scores and are still in the
// cache for the gradients. About 7 B H D FLOPs; (H + 2) B D floats read and, with gradients, as many written: limited
// by memory bandwidth. n - p comes before the product, so that what they share cancels before it is rounded, and what
// is one number a negative or a row is double. Every sum has one fixed order that depends neither on the instruction
// set nor on the threads, and products are never contracted, so all of them give the same bits.
#pragma once

#include <cstdint>

#include "cpu_features.h"

namespace ance_fast {

struct PairwiseLoss {
  const float* q;    // [rows, dim]
  const float* pos;  // [rows, dim]
  const float* neg;  // [rows, negatives, dim]; masked ones are not read
  int64_t rows, negatives, dim;
  double scale;
  const bool* mask;  // [rows, negatives], true where a negative counts, or null (all)
  float* loss;       // [1]
  // Gradients of the loss, written completely. A null grad_scale: none of the four is wanted.
  float* grad_q;      // [rows, dim]
  float* grad_pos;    // [rows, dim]
  float* grad_neg;    // [rows, negatives, dim]
  float* grad_scale;  // [1]
};

// `threads` splits the rows; the result does not depend on it.
void pairwise_loss(const PairwiseLoss& args, Isa isa, int threads);

}  // namespace ance_fast
