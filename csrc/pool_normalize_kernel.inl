// The kernels of pool_normalize.h (see each_isa.inl). Sixteen partial sums whatever the register width, so that every
// instruction set adds in the same order.
#include "lanes.inl"

ANCE_TARGET static float sum_of(const float* x, int64_t dim) {
  Wide lanes = {};
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) lanes += load_wide(x + d);
  float total = sum_wide(lanes);
  for (; d < dim; ++d) total += x[d];
  return total;
}

ANCE_TARGET static float dot_of(const float* x, const float* y, int64_t dim) {
  Wide lanes = {};
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    lanes += load_wide(x + d) * load_wide(y + d);
  }
  float total = sum_wide(lanes);
  for (; d < dim; ++d) total += x[d] * y[d];
  return total;
}

ANCE_TARGET static float squared_deviation_of(const float* x, float mean, int64_t dim) {
  Wide lanes = {};
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    const Wide deviation = load_wide(x + d) - mean;
    lanes += deviation * deviation;
  }
  float total = sum_wide(lanes);
  for (; d < dim; ++d) total += (x[d] - mean) * (x[d] - mean);
  return total;
}

ANCE_TARGET static void copy_row(const float* __restrict from, float* __restrict to, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) to[d] = from[d];
}

ANCE_TARGET static void fill_row(float* row, float value, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) row[d] = value;
}

// Past the cache: a result larger than the L2 cache would be read into it only to be overwritten. `to` has the alignment
// of a register, and dim is a multiple of 16.
ANCE_TARGET static void stream_row(const float* __restrict from, float* __restrict to, int64_t dim) {
#if ANCE_LANES == 16
  for (int64_t d = 0; d < dim; d += 16) _mm512_stream_ps(to + d, _mm512_loadu_ps(from + d));
#elif ANCE_LANES == 8
  for (int64_t d = 0; d < dim; d += 8) _mm256_stream_ps(to + d, _mm256_loadu_ps(from + d));
#else
  copy_row(from, to, dim);
#endif
}

ANCE_TARGET static void mean_rows(const float* __restrict rows, int64_t count, float* __restrict out, int64_t dim) {
  copy_row(rows, out, dim);
  int64_t t = 1;
  // Four rows a pass keep the running sum in registers; each column still adds its tokens one after the other.
  for (; t + 4 <= count; t += 4) {
    const float* a = rows + t * dim;
    for (int64_t d = 0; d < dim; ++d) {
      out[d] = (((out[d] + a[d]) + a[d + dim]) + a[d + 2 * dim]) + a[d + 3 * dim];
    }
  }
  for (; t < count; ++t) {
    const float* a = rows + t * dim;
    for (int64_t d = 0; d < dim; ++d) out[d] += a[d];
  }
  const float length = static_cast<float>(count);
  for (int64_t d = 0; d < dim; ++d) out[d] /= length;
}

// The first token that holds the maximum wins; NaN counts as larger than every number.
ANCE_TARGET static void max_rows(const float* __restrict rows, int64_t begin, int64_t count, float* __restrict out,
                                 int32_t* __restrict argmax, int64_t dim) {
  copy_row(rows, out, dim);
  for (int64_t d = 0; d < dim; ++d) argmax[d] = static_cast<int32_t>(begin);
  for (int64_t t = 1; t < count; ++t) {
    const float* a = rows + t * dim;
    const int32_t token = static_cast<int32_t>(begin + t);
    for (int64_t d = 0; d < dim; ++d) {
      const bool take = (a[d] > out[d]) | ((a[d] != a[d]) & (out[d] == out[d]));
      out[d] = take ? a[d] : out[d];
      argmax[d] = take ? token : argmax[d];
    }
  }
}

ANCE_TARGET static void forward(const PoolForward& p, int64_t first_sequence, int64_t last_sequence) {
  const int64_t dim = p.dim;
  for (int64_t b = first_sequence; b < last_sequence; ++b) {
    const int64_t begin = p.cu_seqlens[b], count = p.cu_seqlens[b + 1] - begin;
    float* row = p.out + b * dim;
    float* saved = p.pooled ? p.pooled + b * dim : nullptr;
    float stat0 = 0.0f, stat1 = 0.0f;
    if (count == 0) {
      fill_row(row, 0.0f, dim);
      if (saved) fill_row(saved, 0.0f, dim);
      if (p.argmax) {
        for (int64_t d = 0; d < dim; ++d) p.argmax[b * dim + d] = -1;
      }
    } else {
      const float* first = p.hidden + begin * dim;
      switch (p.mode) {
        case PoolMode::kMean: mean_rows(first, count, row, dim); break;
        case PoolMode::kCls: copy_row(first, row, dim); break;
        case PoolMode::kLast: copy_row(first + (count - 1) * dim, row, dim); break;
        case PoolMode::kMax: max_rows(first, begin, count, row, p.argmax + b * dim, dim); break;
      }
      if (saved) copy_row(row, saved, dim);
      if (p.norm == PoolNorm::kL2) {
        stat0 = __builtin_sqrtf(dot_of(row, row, dim));
        const float denominator = stat0 < p.eps ? p.eps : stat0;  // NaN stays NaN
        for (int64_t d = 0; d < dim; ++d) row[d] /= denominator;
      } else if (p.norm == PoolNorm::kLayerNorm) {
        const float mean = sum_of(row, dim) / static_cast<float>(dim);
        const float variance = squared_deviation_of(row, mean, dim) / static_cast<float>(dim);
        const float rstd = 1.0f / __builtin_sqrtf(variance + p.eps);
        stat0 = mean;
        stat1 = rstd;
        for (int64_t d = 0; d < dim; ++d) row[d] = (row[d] - mean) * rstd;
        if (p.weight) {
          for (int64_t d = 0; d < dim; ++d) row[d] *= p.weight[d];
        }
        if (p.bias) {
          for (int64_t d = 0; d < dim; ++d) row[d] += p.bias[d];
        }
      }
    }
    if (p.stats) {
      p.stats[2 * b] = stat0;
      p.stats[2 * b + 1] = stat1;
    }
  }
}

// Gradient with respect to the pooled row. scratch: 2 * dim floats; the result is in scratch[0, dim).
ANCE_TARGET static void norm_backward(const PoolBackward& p, int64_t b, float* __restrict scratch) {
  const int64_t dim = p.dim;
  const float* __restrict g = p.grad_out + b * dim;
  float* __restrict gx = scratch;
  float* __restrict normalized = scratch + dim;
  if (p.norm == PoolNorm::kNone) {
    copy_row(g, gx, dim);
    return;
  }
  const float* __restrict x = p.pooled + b * dim;
  if (p.norm == PoolNorm::kL2) {
    const float length = p.stats[2 * b];
    if (length < p.eps) {  // below eps the divisor is a constant
      for (int64_t d = 0; d < dim; ++d) gx[d] = g[d] / p.eps;
      return;
    }
    for (int64_t d = 0; d < dim; ++d) normalized[d] = x[d] / length;
    const float along = dot_of(normalized, g, dim);
    for (int64_t d = 0; d < dim; ++d) gx[d] = (g[d] - normalized[d] * along) / length;
    return;
  }
  const float mean = p.stats[2 * b], rstd = p.stats[2 * b + 1];
  for (int64_t d = 0; d < dim; ++d) normalized[d] = (x[d] - mean) * rstd;
  if (p.weight) {
    for (int64_t d = 0; d < dim; ++d) gx[d] = g[d] * p.weight[d];
  } else {
    copy_row(g, gx, dim);
  }
  const float mean_g = sum_of(gx, dim) / static_cast<float>(dim);
  const float mean_gx = dot_of(gx, normalized, dim) / static_cast<float>(dim);
  for (int64_t d = 0; d < dim; ++d) gx[d] = rstd * (gx[d] - mean_g - normalized[d] * mean_gx);
}

// In the order of the sequences, so one thread: B rows to read, where the rest of the backward pass writes T.
ANCE_TARGET static void parameter_gradients(const PoolBackward& p) {
  const int64_t dim = p.dim;
  if (p.grad_weight) fill_row(p.grad_weight, 0.0f, dim);
  if (p.grad_bias) fill_row(p.grad_bias, 0.0f, dim);
  for (int64_t b = 0; b < p.sequences; ++b) {
    if (p.cu_seqlens[b] == p.cu_seqlens[b + 1]) continue;
    const float* __restrict g = p.grad_out + b * dim;
    const float* __restrict x = p.pooled + b * dim;
    const float mean = p.stats[2 * b], rstd = p.stats[2 * b + 1];
    if (p.grad_weight) {
      for (int64_t d = 0; d < dim; ++d) p.grad_weight[d] += g[d] * ((x[d] - mean) * rstd);
    }
    if (p.grad_bias) {
      for (int64_t d = 0; d < dim; ++d) p.grad_bias[d] += g[d];
    }
  }
}

// scratch: 3 * dim floats. past_cache: see stream_row.
ANCE_TARGET static void backward(const PoolBackward& p, float* scratch, bool past_cache, int64_t first_sequence,
                                 int64_t last_sequence) {
  const int64_t dim = p.dim;
  float* zeros = scratch + 2 * dim;
  fill_row(zeros, 0.0f, dim);
  for (int64_t b = first_sequence; b < last_sequence; ++b) {
    const int64_t begin = p.cu_seqlens[b], count = p.cu_seqlens[b + 1] - begin;
    if (count == 0) continue;
    norm_backward(p, b, scratch);
    float* rows = p.grad_hidden + begin * dim;
    const float* every = zeros;
    if (p.mode == PoolMode::kMean) {
      const float length = static_cast<float>(count);
      for (int64_t d = 0; d < dim; ++d) scratch[d] /= length;
      every = scratch;
    }
    for (int64_t t = 0; t < count; ++t) {
      if (past_cache) {
        stream_row(every, rows + t * dim, dim);
      } else {
        copy_row(every, rows + t * dim, dim);
      }
    }
    if (p.mode == PoolMode::kMean) continue;
    if (p.mode == PoolMode::kCls) {
      copy_row(scratch, rows, dim);
    } else if (p.mode == PoolMode::kLast) {
      copy_row(scratch, rows + (count - 1) * dim, dim);
    } else {
      const int32_t* argmax = p.argmax + b * dim;
      for (int64_t d = 0; d < dim; ++d) p.grad_hidden[argmax[d] * dim + d] = scratch[d];
    }
  }
#if ANCE_LANES >= 8
  _mm_sfence();  // before another thread is told that the rows are there
#endif
}
