#include "pool_normalize.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <stdexcept>
#include <vector>

#include "pages.h"
#include "parallel.h"

namespace ance_fast {
namespace {

namespace scalar {
#define ANCE_TARGET
#define ANCE_LANES 4
#include "lanes.inl"
#include "pool_normalize_kernel.inl"
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace scalar

#if defined(__x86_64__)
namespace avx2 {
#define ANCE_TARGET __attribute__((target("avx2,fma")))
#define ANCE_LANES 8
#include "lanes.inl"
#include "pool_normalize_kernel.inl"
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace avx2

namespace avx512 {
#define ANCE_TARGET __attribute__((target("avx512f,avx512dq,avx512vl")))
#define ANCE_LANES 16
#include "lanes.inl"
#include "pool_normalize_kernel.inl"
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace avx512
#endif

// Results that a second-level cache does not hold; smaller ones are there when their reader comes.
constexpr size_t kPastCacheBytes = size_t{4} << 20;

void check_offsets(const int32_t* cu_seqlens, int64_t sequences, int64_t tokens) {
  if (cu_seqlens[0] != 0) {
    throw std::invalid_argument("cu_seqlens must start with 0, got " + std::to_string(cu_seqlens[0]));
  }
  for (int64_t b = 0; b < sequences; ++b) {
    if (cu_seqlens[b + 1] < cu_seqlens[b]) {
      throw std::invalid_argument("cu_seqlens decreases at entry " + std::to_string(b + 1));
    }
  }
  if (cu_seqlens[sequences] != tokens) {
    throw std::invalid_argument("cu_seqlens ends with " + std::to_string(cu_seqlens[sequences]) + ", but hidden has " +
                                std::to_string(tokens) + " tokens");
  }
}

}  // namespace

PoolMode parse_pool_mode(const std::string& name) {
  if (name == "mean") return PoolMode::kMean;
  if (name == "cls") return PoolMode::kCls;
  if (name == "last") return PoolMode::kLast;
  if (name == "max") return PoolMode::kMax;
  throw std::invalid_argument("mode is '" + name + "'; it must be mean, cls, last or max");
}

PoolNorm parse_pool_norm(const std::string& name) {
  if (name == "none") return PoolNorm::kNone;
  if (name == "l2") return PoolNorm::kL2;
  if (name == "layernorm") return PoolNorm::kLayerNorm;
  throw std::invalid_argument("norm is '" + name + "'; it must be none, l2 or layernorm");
}

void pool_normalize_forward(const PoolForward& args, Isa isa, int threads) {
  check_offsets(args.cu_seqlens, args.sequences, args.tokens);
  if (args.mode == PoolMode::kMax && args.argmax == nullptr) {
    throw std::invalid_argument("mode 'max' needs the argmax output");
  }
  split(args.sequences, args.tokens * args.dim, threads,
        [&](int64_t begin, int64_t end) { ANCE_DISPATCH(isa, forward(args, begin, end)); });
}

void pool_normalize_backward(const PoolBackward& args, Isa isa, int threads) {
  check_offsets(args.cu_seqlens, args.sequences, args.tokens);
  if (args.norm != PoolNorm::kNone && (args.pooled == nullptr || args.stats == nullptr)) {
    throw std::invalid_argument("the backward pass of a norm needs the pooled rows and stats that the forward pass saved");
  }
  if (args.mode == PoolMode::kMax) {
    if (args.argmax == nullptr) throw std::invalid_argument("mode 'max' needs the argmax that the forward pass saved");
    for (int64_t b = 0; b < args.sequences; ++b) {
      const int32_t begin = args.cu_seqlens[b], end = args.cu_seqlens[b + 1];
      for (int64_t d = 0; begin < end && d < args.dim; ++d) {
        const int32_t token = args.argmax[b * args.dim + d];
        if (token < begin || token >= end) {
          throw std::invalid_argument("argmax of sequence " + std::to_string(b) + " lies outside the sequence");
        }
      }
    }
  }
  const size_t bytes = static_cast<size_t>(args.tokens * args.dim) * sizeof(float);
  const bool used_before = has_pages(args.grad_hidden, bytes);
  if (!used_before) advise_huge_pages(args.grad_hidden, bytes);
  const bool aligned = args.dim % 16 == 0 && reinterpret_cast<uintptr_t>(args.grad_hidden) % 64 == 0;
  // A page that the system has just filled with zeros is in the cache.
  const bool past_cache = used_before && aligned && bytes >= kPastCacheBytes;
  split(args.sequences, args.tokens * args.dim, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(3 * static_cast<size_t>(args.dim));
    ANCE_DISPATCH(isa, backward(args, scratch.data(), past_cache, begin, end));
  });
  if (args.grad_weight != nullptr || args.grad_bias != nullptr) {
    ANCE_DISPATCH(isa, parameter_gradients(args));
  }
}

}  // namespace ance_fast
