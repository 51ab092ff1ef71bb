// The kernels of softmax_gradient.h (see each_isa.inl).
#include "lanes.inl"

struct RowStatistics {
  float top, sum;
};

// Largest of a row's scaled logits and the sum of exp(s - top); (-inf, 0) when every entry is -inf, NaN if one is.
ANCE_TARGET static RowStatistics statistics_of(const float* row, int64_t columns, float scale) {
  float top = -__builtin_inff();
  Lanes highest = Lanes{} + top;
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    const Lanes s = load(row + j) * scale;
    highest = s > highest ? s : highest;
  }
  for (int i = 0; i < kLanes; ++i) top = highest[i] > top ? highest[i] : top;
  for (; j < columns; ++j) top = row[j] * scale > top ? row[j] * scale : top;
  // Finite even when there is nothing to sum, so that -inf - top is not NaN.
  const float shift = top == -__builtin_inff() ? 0.0f : top;
  const Lanes lowest = Lanes{} - 87.0f, zero = {};
  Lanes lanes = {};
  float rest = 0.0f;
  for (j = 0; j + kLanes <= columns; j += kLanes) {
    const Lanes x = load(row + j) * scale - shift;
    lanes += x < lowest ? zero : exp_lanes(x);
  }
  for (; j < columns; ++j) {
    const float x = row[j] * scale - shift;
    if (!(x < -87.0f)) rest += exp_lanes(zero + x)[0];
  }
  return {top, sum_lanes(lanes) + rest};
}

// row <- factor * exp(scale * row - top), exactly 0 for -inf and wherever the product would be subnormal: such numbers
// change nothing and slow the matrix products down.
ANCE_TARGET static void exponentiate(float* row, int64_t columns, float scale, float top, float factor) {
  if (factor == 0.0f) {
    for (int64_t j = 0; j < columns; ++j) row[j] = 0.0f;
    return;
  }
  const float least = __builtin_fmaxf(-87.0f, -85.0f - __builtin_logf(factor));
  const Lanes lowest = Lanes{} + least, zero = {};
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    const Lanes x = load(row + j) * scale - top;
    store(row + j, x < lowest ? zero : exp_lanes(x) * factor);
  }
  for (; j < columns; ++j) {
    const float x = row[j] * scale - top;
    row[j] = x < least ? 0.0f : exp_lanes(zero + x)[0] * factor;
  }
}

// Multiplies by a scale that is not positive, under which -inf would not stay the smallest; returns the scale left.
ANCE_TARGET static float apply_scale(float* row, int64_t columns, float scale) {
  if (scale > 0.0f) return scale;
  for (int64_t j = 0; j < columns; ++j) row[j] *= scale;
  return 1.0f;
}

// Sets the columns hidden from row `r`, and its targets, to -inf.
ANCE_TARGET static void leave_negatives(const SoftmaxBlock& b, int64_t r, float* row) {
  const int64_t first = b.masked_offsets ? b.masked_offsets[r] : 0, last = b.masked_offsets ? b.masked_offsets[r + 1] : 0;
  for (int64_t m = first; m < last; ++m) {
    const int64_t key = b.masked_keys[m];
    for (int64_t k = b.key_offsets[key]; k < b.key_offsets[key + 1]; ++k) {
      const int64_t column = b.key_columns[k] - b.column_begin;
      if (column >= 0 && column < b.columns) row[column] = -__builtin_inff();
    }
  }
  for (int64_t t = b.target_offsets[r]; t < b.target_offsets[r + 1]; ++t) {
    const int64_t column = b.target_columns[t] - b.column_begin;
    if (column >= 0 && column < b.columns) row[column] = -__builtin_inff();
  }
}

ANCE_TARGET static void statistics_rows(const SoftmaxBlock& b, float* top, float* sum, float* target_logits,
                                        int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    float* row = b.logits + r * b.columns;
    const float scale = apply_scale(row, b.columns, b.scale);
    for (int64_t t = b.target_offsets[r]; t < b.target_offsets[r + 1]; ++t) {
      const int64_t column = b.target_columns[t] - b.column_begin;
      if (column >= 0 && column < b.columns) target_logits[t - b.target_offsets[0]] = row[column] * scale;
    }
    leave_negatives(b, r, row);
    const RowStatistics tile = statistics_of(row, b.columns, scale);
    top[r] = tile.top;
    sum[r] = tile.sum;
  }
}

ANCE_TARGET static void tile_gradient_rows(const SoftmaxBlock& b, const float* top, const float* factor,
                                           const float* slopes, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    float* row = b.logits + r * b.columns;
    const float scale = apply_scale(row, b.columns, b.scale);
    leave_negatives(b, r, row);
    exponentiate(row, b.columns, scale, top[r], factor[r]);
    for (int64_t t = b.target_offsets[r]; t < b.target_offsets[r + 1]; ++t) {
      const int64_t column = b.target_columns[t] - b.column_begin;
      if (column >= 0 && column < b.columns) row[column] -= slopes[t - b.target_offsets[0]];
    }
  }
}

// `slopes` is as long as the longest list of targets: first the logits of the row's targets, then what they get.
ANCE_TARGET static void gradient_rows(const SoftmaxBlock& b, float* losses, bool gradient, float* slopes,
                                      int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    float* row = b.logits + r * b.columns;
    const float scale = apply_scale(row, b.columns, b.scale);
    const int64_t* targets = b.target_columns + b.target_offsets[r];
    const int64_t count = b.target_offsets[r + 1] - b.target_offsets[r];
    for (int64_t t = 0; t < count; ++t) slopes[t] = row[targets[t]] * scale;
    leave_negatives(b, r, row);
    const RowStatistics negatives = statistics_of(row, b.columns, scale);
    const double log_sum = __builtin_log(static_cast<double>(negatives.sum));
    double loss = 0.0, weight = 0.0;
    for (int64_t t = 0; t < count; ++t) {
      const double margin = (static_cast<double>(negatives.top) - slopes[t]) + log_sum;
      const double small = __builtin_exp(-__builtin_fabs(margin));
      loss += (margin > 0 ? margin : 0.0) + __builtin_log1p(small);
      const double slope = (margin > 0 ? 1.0 : small) / (1.0 + small) / static_cast<double>(count);
      weight += slope;
      slopes[t] = static_cast<float>(slope);
    }
    losses[r] = count ? static_cast<float>(loss / static_cast<double>(count)) : 0.0f;
    if (!gradient) continue;
    const float factor = negatives.sum == 0.0f ? 0.0f : static_cast<float>(weight / negatives.sum);
    exponentiate(row, b.columns, scale, negatives.top, factor);
    for (int64_t t = 0; t < count; ++t) row[targets[t]] -= slopes[t];
  }
}
