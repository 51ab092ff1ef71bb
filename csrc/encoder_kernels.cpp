#include "encoder_kernels.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "parallel.h"

namespace ance_fast {
namespace {

namespace scalar {
#define ANCE_TARGET
#define ANCE_LANES 4
#include "lanes.inl"
#include "encoder_kernels.inl"
#include "packed_attention.inl"
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace scalar

#if defined(__x86_64__)
namespace avx2 {
#define ANCE_TARGET __attribute__((target("avx2,fma")))
#define ANCE_LANES 8
#include "lanes.inl"
#include "encoder_kernels.inl"
#include "packed_attention.inl"
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace avx2

namespace avx512 {
#define ANCE_TARGET __attribute__((target("avx512f,avx512dq,avx512vl,prefer-vector-width=512")))
#define ANCE_LANES 16
#include "lanes.inl"
#include "encoder_kernels.inl"
#include "packed_attention.inl"
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace avx512
#endif

void check_ids(const int64_t* ids, int64_t rows, int64_t entries, const char* name) {
  for (int64_t row = 0; row < rows; ++row) {
    if (ids[row] >= 0 && ids[row] < entries) continue;
    throw std::out_of_range(std::string(name) + "[" + std::to_string(row) + "] is " + std::to_string(ids[row]) +
                            "; the table has " + std::to_string(entries) + " entries");
  }
}

}  // namespace

void bias_gelu(const BiasGelu& args, Isa isa, int threads) {
  split(args.rows, args.rows * args.dim, threads,
        [&](int64_t begin, int64_t end) { ANCE_DISPATCH(isa, gelu_rows(args, begin, end)); });
}

void bias_residual_layernorm(const BiasResidualLayerNorm& args, Isa isa, int threads) {
  split(args.rows, args.rows * args.dim, threads,
        [&](int64_t begin, int64_t end) { ANCE_DISPATCH(isa, layernorm_rows(args, begin, end)); });
}

void embed_layernorm(const EmbedLayerNorm& args, Isa isa, int threads) {
  check_ids(args.input_ids, args.rows, args.vocabulary, "input_ids");
  check_ids(args.position_ids, args.rows, args.longest, "position_ids");
  split(args.rows, args.rows * args.dim, threads,
        [&](int64_t begin, int64_t end) { ANCE_DISPATCH(isa, embed_rows(args, begin, end)); });
}

void packed_attention(const PackedAttention& args, Isa isa, int threads) {
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
