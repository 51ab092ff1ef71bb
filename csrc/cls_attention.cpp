#include "cls_attention.h"

#include <vector>

#include "packed_sequences.h"
#include "parallel.h"

namespace ance_fast {
namespace {

#define ANCE_KERNELS "cls_attention.inl"
#include "each_isa.inl"

}  // namespace

void cls_attention(const ClsAttention& args, Isa isa, int threads) {
  check_head_dim(args.head_dim);
  const int64_t longest = check_cu_seqlens(args.cu_seqlens, args.sequences, args.tokens, "kv");
  const int64_t stride = (longest + 15) / 16 * 16;
  split(args.sequences, args.tokens * args.heads * args.head_dim, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(static_cast<size_t>(args.heads * stride));
    for (int64_t b = begin; b < end; ++b) ANCE_DISPATCH(isa, attend_first(args, b, stride, scores.data()));
  });
}

}  // namespace ance_fast
