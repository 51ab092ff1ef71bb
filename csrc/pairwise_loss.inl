// The kernel of pairwise_loss.h (see each_isa.inl). Plain loops that compilers vectorise for any instruction set;
// sixty-four partial sums whatever the register width, so that every set adds in the same order.

// q.(n - p)
ANCE_TARGET static float difference_of(const float* __restrict q, const float* __restrict p, const float* __restrict n,
                                       int64_t dim) {
  float sums[64] = {};
  int64_t d = 0;
  for (; d + 64 <= dim; d += 64) {
    for (int i = 0; i < 64; ++i) sums[i] += q[d + i] * (n[d + i] - p[d + i]);
  }
  for (int i = 0; d + i < dim; ++i) sums[i] += q[d + i] * (n[d + i] - p[d + i]);
  for (int half = 32; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// One sum after the other: for what is not finite.
ANCE_TARGET static float dot_of(const float* q, const float* x, int64_t dim) {
  float total = 0.0f;
  for (int64_t d = 0; d < dim; ++d) total += q[d] * x[d];
  return total;
}

ANCE_TARGET static void fill_row(float* row, float value, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) row[d] = value;
}

ANCE_TARGET static void scaled_row(const float* __restrict x, float weight, float* __restrict out, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) out[d] = weight * x[d];
}

// out <- sum of weights (n - p) over a row's valid negatives, one after the other.
ANCE_TARGET static void weighted_differences(const float* __restrict p, const float* __restrict neg,
                                             const int64_t* valid, const float* weights, int64_t count,
                                             float* __restrict out, int64_t dim) {
  fill_row(out, 0.0f, dim);
  int64_t i = 0;
  // Four negatives a pass keep the running sum in registers.
  for (; i + 4 <= count; i += 4) {
    const float *a = neg + valid[i] * dim, *b = neg + valid[i + 1] * dim, *c = neg + valid[i + 2] * dim,
                *e = neg + valid[i + 3] * dim;
    const float wa = weights[i], wb = weights[i + 1], wc = weights[i + 2], we = weights[i + 3];
    for (int64_t d = 0; d < dim; ++d) {
      out[d] = (((out[d] + wa * (a[d] - p[d])) + wb * (b[d] - p[d])) + wc * (c[d] - p[d])) + we * (e[d] - p[d]);
    }
  }
  for (; i < count; ++i) {
    const float* a = neg + valid[i] * dim;
    const float wa = weights[i];
    for (int64_t d = 0; d < dim; ++d) out[d] += wa * (a[d] - p[d]);
  }
}

// valid and weights [negatives] are scratch: which negatives of a row count, and the derivative of the loss in their
// differences, times the scale.
ANCE_TARGET static void loss_rows(const PairwiseLoss& args, PairwiseRow* rows, int64_t* valid, float* weights,
                                  int64_t begin, int64_t end) {
  const int64_t dim = args.dim, negatives = args.negatives;
  const double step = args.scale / static_cast<double>(args.rows);
  for (int64_t r = begin; r < end; ++r) {
    const float *q = args.q + r * dim, *p = args.pos + r * dim, *neg = args.neg + r * negatives * dim;
    int64_t count = 0;
    for (int64_t h = 0; h < negatives; ++h) {
      if (!args.mask || args.mask[r * negatives + h]) {
        valid[count++] = h;
      } else if (args.grad_scale) {
        fill_row(args.grad_neg + (r * negatives + h) * dim, 0.0f, dim);
      }
    }
    double loss = 0.0, total = 0.0, grad_scale = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      const float* n = neg + valid[i] * dim;
      float difference = difference_of(q, p, n, dim);
      // By an infinite q, for which inf - inf must be NaN, or by finite parts whose difference is too large.
      if (__builtin_isinf(difference)) difference = dot_of(q, n, dim) - dot_of(q, p, dim);
      const double x = args.scale * difference;
      const double small = __builtin_exp(-__builtin_fabs(x));
      loss += (x > 0 ? x : 0.0) + __builtin_log1p(small);
      const double slope = (x > 0 ? 1.0 : small) / (1.0 + small) / static_cast<double>(count);
      total += slope;
      grad_scale += slope * difference;
      weights[i] = static_cast<float>(slope * step);
    }
    rows[r] = {count ? loss / static_cast<double>(count) : 0.0, grad_scale};
    if (!args.grad_scale) continue;
    weighted_differences(p, neg, valid, weights, count, args.grad_q + r * dim, dim);
    for (int64_t i = 0; i < count; ++i) {
      scaled_row(q, weights[i], args.grad_neg + (r * negatives + valid[i]) * dim, dim);
    }
    float* grad_pos = args.grad_pos + r * dim;
    if (count) {
      scaled_row(q, static_cast<float>(-total * step), grad_pos, dim);
    } else {
      fill_row(grad_pos, 0.0f, dim);  // 0 * q would be NaN where q is
    }
  }
}
