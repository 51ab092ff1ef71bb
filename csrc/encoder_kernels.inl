// The kernels of encoder_kernels.h, included once per instruction set after lanes.inl.

// 0.5 x (1 + erf(x / sqrt 2)); erf by Abramowitz and Stegun 7.1.26, absolute error below 2e-7.
ANCE_TARGET static inline Lanes gelu_lanes(Lanes x) {
  const Lanes zero = {};
  const Lanes z = (x < zero ? -x : x) * 0.70710678118654752f;
  const Lanes t = 1.0f / (z * 0.3275911f + 1.0f);
  Lanes p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Lanes tail = p * t * exp_lanes(-z * z);  // 1 - erf(z)
  return 0.5f * x * (x < zero ? tail : 2.0f - tail);
}

ANCE_TARGET static void gelu_rows(const BiasGelu& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* x = p.x + row * p.dim;
    int64_t d = 0;
    for (; d + kLanes <= p.dim; d += kLanes) store(x + d, gelu_lanes(load(x + d) + load(p.bias + d)));
    for (; d < p.dim; ++d) x[d] = gelu_lanes(Lanes{} + (x[d] + p.bias[d]))[0];
  }
}

ANCE_TARGET static void layernorm_rows(const BiasResidualLayerNorm& p, int64_t begin, int64_t end) {
  const int64_t whole = p.dim / 16 * 16;
  for (int64_t row = begin; row < end; ++row) {
    float* x = p.x + row * p.dim;
    const float* residual = p.residual + row * p.dim;
    Wide lanes = {};
    float rest = 0.0f;
    for (int64_t d = 0; d < whole; d += 16) {
      const Wide v = load_wide(x + d) + load_wide(p.bias + d) + load_wide(residual + d);
      store_wide(x + d, v);
      lanes += v;
    }
    for (int64_t d = whole; d < p.dim; ++d) rest += x[d] = x[d] + p.bias[d] + residual[d];
    const float mean = (sum_wide(lanes) + rest) / static_cast<float>(p.dim);
    lanes = Wide{};
    rest = 0.0f;
    for (int64_t d = 0; d < whole; d += 16) {
      const Wide v = load_wide(x + d) - mean;
      lanes += v * v;
    }
    for (int64_t d = whole; d < p.dim; ++d) rest += (x[d] - mean) * (x[d] - mean);
    const float inverse = 1.0f / __builtin_sqrtf((sum_wide(lanes) + rest) / static_cast<float>(p.dim) + p.eps);
    for (int64_t d = 0; d < whole; d += 16) {
      store_wide(x + d, (load_wide(x + d) - mean) * inverse * load_wide(p.weight + d) + load_wide(p.shift + d));
    }
    for (int64_t d = whole; d < p.dim; ++d) x[d] = (x[d] - mean) * inverse * p.weight[d] + p.shift[d];
  }
}

// Scores of four queries against every key, a [4, keys] block: keys lie transposed, [head_dim, stride].
ANCE_TARGET static inline void score_block(const float* q, const float* keys, int64_t head_dim, int64_t stride,
                                           float* scores) {
  for (int64_t k = 0; k < stride; k += 16) {
    Wide s0 = {}, s1 = {}, s2 = {}, s3 = {};
    for (int64_t d = 0; d < head_dim; ++d) {
      const Wide key = load_wide(keys + d * stride + k);
      s0 += q[d] * key;
      s1 += q[head_dim + d] * key;
      s2 += q[2 * head_dim + d] * key;
      s3 += q[3 * head_dim + d] * key;
    }
    store_wide(scores + k, s0);
    store_wide(scores + stride + k, s1);
    store_wide(scores + 2 * stride + k, s2);
    store_wide(scores + 3 * stride + k, s3);
  }
}

// Softmax of one row in place, left unnormalised; returns 1 / sum. Entries from `length` to `stride` become 0.
ANCE_TARGET static inline float softmax_row(float* scores, int64_t length, int64_t stride) {
  for (int64_t k = length; k < stride; ++k) scores[k] = -1e30f;
  Lanes highest = load(scores);
  for (int64_t k = kLanes; k < stride; k += kLanes) {
    const Lanes v = load(scores + k);
    highest = v > highest ? v : highest;
  }
  float top = highest[0];
  for (int i = 1; i < kLanes; ++i) top = highest[i] > top ? highest[i] : top;
  Lanes lanes = {};
  for (int64_t k = 0; k < stride; k += kLanes) {
    const Lanes v = exp_lanes(load(scores + k) - top);
    store(scores + k, v);
    lanes += v;
  }
  for (int64_t k = length; k < stride; ++k) scores[k] = 0.0f;
  return 1.0f / sum_lanes(lanes);
}

// One head of one sequence. Scratch: keys [head_dim, stride], values [stride, head_dim], q [4, head_dim],
// scores [4, stride], with stride the length rounded up to 16.
ANCE_TARGET static void attend(const PackedAttention& p, int64_t begin, int64_t length, int64_t head, float* scratch) {
  const int64_t dim = p.head_dim, width = p.heads * dim, stride = (length + 15) / 16 * 16;
  float* keys = scratch;
  float* values = keys + dim * stride;
  float* q = values + stride * dim;
  float* scores = q + 4 * dim;
  const float* rows = p.qkv + begin * 3 * width + head * dim;
  const float* bias = p.bias + head * dim;
  for (int64_t k = 0; k < length; ++k) {
    const float* key = rows + k * 3 * width + width;
    for (int64_t d = 0; d < dim; ++d) keys[d * stride + k] = key[d] + bias[width + d];
    for (int64_t d = 0; d < dim; d += 16) {
      store_wide(values + k * dim + d, load_wide(key + width + d) + load_wide(bias + 2 * width + d));
    }
  }
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t k = length; k < stride; ++k) keys[d * stride + k] = 0.0f;
  }
  for (int64_t first = 0; first < length; first += 4) {
    const int64_t block = length - first < 4 ? length - first : 4;
    for (int64_t i = 0; i < 4; ++i) {
      const float* row = rows + (first + (i < block ? i : 0)) * 3 * width;
      for (int64_t d = 0; d < dim; d += 16) store_wide(q + i * dim + d, (load_wide(row + d) + load_wide(bias + d)) * p.scale);
    }
    score_block(q, keys, dim, stride, scores);
    float inverse[4];
    for (int64_t i = 0; i < 4; ++i) inverse[i] = softmax_row(scores + i * stride, length, stride);
    for (int64_t d = 0; d < dim; d += 16) {
      Wide o0 = {}, o1 = {}, o2 = {}, o3 = {};
      for (int64_t k = 0; k < length; ++k) {
        const Wide value = load_wide(values + k * dim + d);
        o0 += scores[k] * value;
        o1 += scores[stride + k] * value;
        o2 += scores[2 * stride + k] * value;
        o3 += scores[3 * stride + k] * value;
      }
      const Wide o[4] = {o0 * inverse[0], o1 * inverse[1], o2 * inverse[2], o3 * inverse[3]};
      for (int64_t i = 0; i < block; ++i) store_wide(p.out + (begin + first + i) * width + head * dim + d, o[i]);
    }
  }
}
