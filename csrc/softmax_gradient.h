// The part of the in-batch softmax loss between its matrix products, for a block of logits, fp32 on the CPU.
//
//   logits [rows, columns], unscaled products q.p  ->  loss [rows] and, over the logits, P - onehot
//
// A row's negatives are the columns that are neither one of its targets nor masked. With s = scale * logit,
// rest = log sum exp s over the negatives, and t the logit of a target, the row's loss is the mean over its targets of
// log(1 + exp(rest - t)). Three passes over a row, in L1 up to some ten thousand columns; two exponentials a logit. The
// matrix products around it do 6 D FLOPs a logit, so it is a few percent of the loss.
//
// Masks are lists, not a matrix: masked_keys names the keys (documents) hidden from each row, key_columns the columns
// that hold a key. A block may be a tile of columns of a larger matrix; columns are then numbered from column_begin.
#pragma once

#include <cstdint>

#include "cpu_features.h"

namespace ance_fast {

struct SoftmaxBlock {
  float* logits;  // [rows, columns], contiguous
  int64_t rows, columns;
  int64_t column_begin;  // number of the block's first column
  float scale;
  const int64_t* target_offsets;  // [rows + 1], into the next two; any first value
  const int64_t* target_columns;
  // Null, all four, without masks.
  const int64_t* masked_offsets;  // [rows + 1], any first value
  const int64_t* masked_keys;
  const int64_t* key_offsets;
  const int64_t* key_columns;  // ascending within a key
};

// Loss of each row, and P - onehot over the logits if `gradient`.
void softmax_gradient(const SoftmaxBlock& block, float* losses, bool gradient, Isa isa, int threads);

// The same in pieces, for logits that are visited a tile of columns at a time. softmax_statistics gives for the negatives
// in a tile their largest logit `top` [rows] and the `sum` [rows] of exp(s - top), (-inf, 0) without any; it uses the
// tile up, and writes the scaled logits of the targets that lie in it to target_logits. softmax_tile_gradient writes
// P - onehot over a tile of logits computed anew: `top` is that of all tiles, factor [rows] the sum of a row's slopes
// over its sum, slopes what is taken off at each target. target_logits and slopes are numbered from the block's first
// target.
void softmax_statistics(const SoftmaxBlock& block, float* top, float* sum, float* target_logits, Isa isa, int threads);
void softmax_tile_gradient(const SoftmaxBlock& block, const float* top, const float* factor, const float* slopes,
                           Isa isa, int threads);

}  // namespace ance_fast
