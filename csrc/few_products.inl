// The kernel of few_products.h (see each_isa.inl). A few queries meet a few vectors at a time: enough independent sums
// to hide the latency of a multiply-add, few enough for the registers.
#include "lanes.inl"

constexpr int64_t kCached = 16;                    // vectors that stay in the L1 cache while all queries meet them
constexpr uintptr_t kAhead = 1536 * sizeof(float);  // called from memory early: prefetchers stop at a page's end
constexpr int kSums = 8;                            // sums in registers

ANCE_TARGET static inline float tree_sum(Lanes v) {
  float sums[kLanes];
  store(sums, v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

ANCE_TARGET static inline void call_ahead(const float* p) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + kAhead));
}

// scores[q * stride + v] <- query q . vector v, all `dim` apart. The counts are constants where this is called, and
// their product is at most kSums.
ANCE_TARGET __attribute__((always_inline)) static inline void block_products(const float* queries, int query_count,
                                                                             const float* vectors, int vector_count,
                                                                             int64_t dim, bool from_memory,
                                                                             float* scores, int64_t stride) {
  Lanes sums[kSums] = {};
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    for (int v = 0; v < vector_count; ++v) {
      const float* place = vectors + v * dim + d;
      if (from_memory) call_ahead(place);
      const Lanes x = load(place);
      for (int q = 0; q < query_count; ++q) sums[v * query_count + q] += load(queries + q * dim + d) * x;
    }
  }
  for (int v = 0; v < vector_count; ++v) {
    for (int q = 0; q < query_count; ++q) {
      float total = tree_sum(sums[v * query_count + q]);
      for (int64_t rest = d; rest < dim; ++rest) total += queries[q * dim + rest] * vectors[v * dim + rest];
      scores[q * stride + v] = total;
    }
  }
}

// `query_count` queries, a constant, and vectors begin .. end; the first queries call them from memory.
ANCE_TARGET __attribute__((always_inline)) static inline void row_products(const FewProducts& args, int64_t query,
                                                                           int query_count, int64_t begin,
                                                                           int64_t end) {
  const float *queries = args.queries + query * args.dim, *vectors = args.vectors;
  float* scores = args.scores + query * args.count;
  const int64_t dim = args.dim;
  const int together = query_count < 4 ? 4 : 2;
  int64_t v = begin;
  if (query == 0) {
    for (; v + together <= end; v += together) {
      block_products(queries, query_count, vectors + v * dim, together, dim, true, scores + v, args.count);
    }
  } else {
    for (; v + together <= end; v += together) {
      block_products(queries, query_count, vectors + v * dim, together, dim, false, scores + v, args.count);
    }
  }
  for (; v < end; ++v) block_products(queries, query_count, vectors + v * dim, 1, dim, false, scores + v, args.count);
}

ANCE_TARGET static void products(const FewProducts& args, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; block += kCached) {
    const int64_t stop = end - block < kCached ? end : block + kCached;
    int64_t query = 0;
    for (; query + 4 <= args.rows; query += 4) row_products(args, query, 4, block, stop);
    for (; query + 2 <= args.rows; query += 2) row_products(args, query, 2, block, stop);
    for (; query < args.rows; ++query) row_products(args, query, 1, block, stop);
  }
}
