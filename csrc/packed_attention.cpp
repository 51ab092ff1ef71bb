#include "packed_attention.h"

#include <utility>
#include <vector>

#include "packed_sequences.h"
#include "parallel.h"

namespace ance_fast {
namespace {

#define ANCE_KERNELS "packed_attention.inl"
#include "each_isa.inl"

}  // namespace

void packed_attention(const PackedAttention& args, Isa isa, int threads) {
  check_head_dim(args.head_dim);
  const int64_t longest = check_cu_seqlens(args.cu_seqlens, args.sequences, args.tokens, "qkv");
  // Keys and values, a block of queries and its scores, for blocks of up to 32 queries.
  const size_t scratch = static_cast<size_t>(2 * args.head_dim * longest + 32 * args.head_dim + 32 * longest);
  const int64_t tasks = args.sequences * args.heads;
  split(tasks, args.tokens * args.heads * args.head_dim, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> room(scratch);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = args.cu_seqlens[task / args.heads], last = args.cu_seqlens[task / args.heads + 1];
      if (first == last) continue;
      ANCE_DISPATCH(isa, attend(args, first, last - first, task % args.heads, room.data()));
    }
  });
}

}  // namespace ance_fast
