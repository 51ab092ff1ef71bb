#include "cls_attention.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"

namespace ance_fast {
namespace {

namespace scalar {
#define ANCE_TARGET
#define ANCE_LANES 4
#include "lanes.inl"
#include "cls_attention.inl"
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace scalar

#if defined(__x86_64__)
namespace avx2 {
#define ANCE_TARGET __attribute__((target("avx2,fma")))
#define ANCE_LANES 8
#include "lanes.inl"
#include "cls_attention.inl"
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace avx2

namespace avx512 {
#define ANCE_TARGET __attribute__((target("avx512f,avx512dq,avx512vl,prefer-vector-width=512")))
#define ANCE_LANES 16
#include "lanes.inl"
#include "cls_attention.inl"
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace avx512
#endif

}  // namespace

void cls_attention(const ClsAttention& args, Isa isa, int threads) {
  if (args.head_dim % 16 != 0) {
    throw std::invalid_argument("head_dim is " + std::to_string(args.head_dim) + "; it must be a multiple of 16");
  }
  int64_t longest = 0;
  for (int64_t b = 0; b < args.sequences; ++b) {
    const int64_t length = args.cu_seqlens[b + 1] - args.cu_seqlens[b];
    if (length < 0) throw std::invalid_argument("cu_seqlens decreases at entry " + std::to_string(b + 1));
    longest = std::max(longest, length);
  }
  if (args.cu_seqlens[0] != 0 || args.cu_seqlens[args.sequences] != args.tokens) {
    throw std::invalid_argument("cu_seqlens must go from 0 to " + std::to_string(args.tokens));
  }
  const int64_t stride = (longest + 15) / 16 * 16;
  split(args.sequences, args.tokens * args.heads * args.head_dim, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(static_cast<size_t>(args.heads * stride));
    for (int64_t b = begin; b < end; ++b) ANCE_DISPATCH(isa, attend_first(args, b, stride, scores.data()));
  });
}

}  // namespace ance_fast
