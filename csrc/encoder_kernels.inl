// The kernels of encoder_kernels.h (see each_isa.inl).
#include "lanes.inl"

// x Phi(x) = max(x, 0) - |x| Phi(-|x|), with Phi(-a) = 2^P(a): the base-2 logarithm of a normal tail is close to a
// parabola. P is the polynomial of degree 8 whose error, weighted by max(a, 0.1) Phi(-a), is least on [0, 6]; the result
// is within 4e-8 of the exact one (|x| <= 1, elsewhere a few units in the last place more). From 6 on a Phi(-a) is below
// 6e-9 and stays what it is there, which keeps the limits: x above, 0 below. NaN stays NaN.
ANCE_TARGET static inline Lanes gelu_lanes(Lanes x) {
  const Lanes zero = {};
  const Lanes six = zero + 6.0f;
  Lanes a = x < zero ? -x : x;
  a = a > six ? six : a;
  Lanes p = a * -1.844963374e-6f + 2.726145952e-5f;
  p = p * a - 1.269691893e-4f;
  p = p * a - 2.854775586e-4f;
  p = p * a + 7.268042292e-3f;
  p = p * a - 5.264939754e-2f;
  p = p * a - 4.591507458e-1f;
  p = p * a - 1.151113892f;
  p = p * a - 0.9999997577f;
  return (x < zero ? zero : x) - a * exp2_lanes(p);
}

ANCE_TARGET static void gelu_rows(const BiasGelu& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* x = p.x + row * p.dim;
    int64_t d = 0;
    for (; d + kLanes <= p.dim; d += kLanes) store(x + d, gelu_lanes(load(x + d) + load(p.bias + d)));
    for (; d < p.dim; ++d) x[d] = gelu_lanes(Lanes{} + (x[d] + p.bias[d]))[0];
  }
}

// x [dim], whose entries sum to `total`, <- layernorm(x) * weight + shift.
ANCE_TARGET static inline void normalize_row(float* x, int64_t dim, float total, const float* weight,
                                             const float* shift, float eps) {
  const int64_t pairs = dim / (2 * kLanes) * (2 * kLanes);
  const float mean = total / static_cast<float>(dim);
  Lanes even = {}, odd = {};
  float rest = 0.0f;
  for (int64_t d = 0; d < pairs; d += 2 * kLanes) {
    const Lanes a = load(x + d) - mean, b = load(x + d + kLanes) - mean;
    even += a * a;
    odd += b * b;
  }
  for (int64_t d = pairs; d < dim; ++d) rest += (x[d] - mean) * (x[d] - mean);
  const float inverse = 1.0f / __builtin_sqrtf((sum_lanes(even + odd) + rest) / static_cast<float>(dim) + eps);
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    store(x + d, (load(x + d) - mean) * inverse * load(weight + d) + load(shift + d));
  }
  for (; d < dim; ++d) x[d] = (x[d] - mean) * inverse * weight[d] + shift[d];
}

// out [dim] <- a + b + c; returns the sum of its entries.
ANCE_TARGET static inline float add_rows(const float* a, const float* b, const float* c, int64_t dim, float* out) {
  const int64_t pairs = dim / (2 * kLanes) * (2 * kLanes);
  Lanes even = {}, odd = {};
  float rest = 0.0f;
  for (int64_t d = 0; d < pairs; d += 2 * kLanes) {
    const Lanes v = load(a + d) + load(b + d) + load(c + d);
    const Lanes w = load(a + d + kLanes) + load(b + d + kLanes) + load(c + d + kLanes);
    store(out + d, v);
    store(out + d + kLanes, w);
    even += v;
    odd += w;
  }
  for (int64_t d = pairs; d < dim; ++d) rest += out[d] = a[d] + b[d] + c[d];
  return sum_lanes(even + odd) + rest;
}

ANCE_TARGET static void layernorm_rows(const BiasResidualLayerNorm& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* x = p.x + row * p.dim;
    const float total = add_rows(x, p.bias, p.residual + row * p.dim, p.dim, x);
    normalize_row(x, p.dim, total, p.weight, p.shift, p.eps);
  }
}

ANCE_TARGET static void embed_rows(const EmbedLayerNorm& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* out = p.out + row * p.dim;
    const float* word = p.words + p.input_ids[row] * p.dim;
    const float* position = p.positions + p.position_ids[row] * p.dim;
    normalize_row(out, p.dim, add_rows(word, position, p.constant, p.dim, out), p.weight, p.shift, p.eps);
  }
}
