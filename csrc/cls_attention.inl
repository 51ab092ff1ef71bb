// The kernel of cls_attention.h (see each_isa.inl).
#include "lanes.inl"

// exp(scores - their maximum) in place, zeros from `length` to the next multiple of a register; returns 1 / sum.
ANCE_TARGET static inline float exponentials(float* scores, int64_t length) {
  const int64_t padded = (length + kLanes - 1) / kLanes * kLanes;
  float top = scores[0];
  for (int64_t k = 1; k < length; ++k) top = scores[k] > top ? scores[k] : top;
  for (int64_t k = length; k < padded; ++k) scores[k] = top;
  float sum = 0.0f;
  for (int64_t k = 0; k < padded; k += kLanes) store(scores + k, exp_lanes(load(scores + k) - top));
  for (int64_t k = length; k < padded; ++k) scores[k] = 0.0f;
  for (int64_t k = 0; k < padded; k += kLanes) sum += sum_lanes(load(scores + k));
  return 1.0f / sum;
}

// All heads of sequence b, so that a token's keys, then its values, are read in one piece. Scratch: scores
// [heads, stride], stride a multiple of 16.
ANCE_TARGET static void attend_first(const ClsAttention& p, int64_t b, int64_t stride, float* scores) {
  const int64_t dim = p.head_dim, width = p.heads * dim;
  const int64_t first = p.cu_seqlens[b], length = p.cu_seqlens[b + 1] - first;
  const float* q = p.q + b * width;
  float* out = p.out + b * width;
  for (int64_t d = 0; d < width; d += 16) store_wide(out + d, Wide{});
  if (length == 0) return;
  for (int64_t k = 0; k < length; ++k) {
    const float* key = p.kv + (first + k) * 2 * width;
    for (int64_t h = 0; h < p.heads; ++h) {
      Wide products = {};
      for (int64_t d = h * dim; d < (h + 1) * dim; d += 16) products += load_wide(q + d) * load_wide(key + d);
      scores[h * stride + k] = sum_wide(products) * p.scale;
    }
  }
  for (int64_t h = 0; h < p.heads; ++h) {
    const float inverse = exponentials(scores + h * stride, length);
    for (int64_t k = 0; k < length; ++k) scores[h * stride + k] *= inverse;
  }
  for (int64_t k = 0; k < length; ++k) {
    const float* value = p.kv + (first + k) * 2 * width + width;
    for (int64_t h = 0; h < p.heads; ++h) {
      const float weight = scores[h * stride + k];
      for (int64_t d = h * dim; d < (h + 1) * dim; d += 16) {
        store_wide(out + d, load_wide(out + d) + weight * load_wide(value + d));
      }
    }
  }
}
