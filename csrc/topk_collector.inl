// The scan of topk_collector.h (see each_isa.inl). Plain loops that compilers vectorise for any instruction set.

// How many of `count` scores reach the threshold; NaN does not.
ANCE_TARGET static inline int32_t count_reaching(const float* scores, int64_t count, float threshold) {
  int32_t reached = 0;
  for (int64_t i = 0; i < count; ++i) reached += scores[i] >= threshold;
  return reached;
}

// Their indices, ascending, into `columns` [count]. Coarse blocks first: in most of them nothing reaches it.
ANCE_TARGET static void reaching(const float* scores, int64_t count, float threshold, int32_t* columns,
                                 int64_t* reached) {
  int64_t found = 0;
  for (int64_t block = 0; block < count; block += 256) {
    const int64_t end = count - block < 256 ? count : block + 256;
    int32_t left = end - block == 256 ? count_reaching(scores + block, 256, threshold)
                                      : count_reaching(scores + block, end - block, threshold);
    for (int64_t at = block; left > 0; at += 32) {
      const int64_t stop = end - at < 32 ? end : at + 32;
      const int32_t here = stop - at == 32 ? count_reaching(scores + at, 32, threshold)
                                           : count_reaching(scores + at, stop - at, threshold);
      left -= here;
      if (!here) continue;
      for (int64_t i = at; i < stop; ++i) {
        columns[found] = static_cast<int32_t>(i);
        found += scores[i] >= threshold;
      }
    }
  }
  *reached = found;
}
