#include "pool_normalize.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <stdexcept>
#include <vector>

#include "packed_sequences.h"
#include "pages.h"
#include "parallel.h"

namespace ance_fast {
namespace {

#define ANCE_KERNELS "pool_normalize_kernel.inl"
#include "each_isa.inl"

// Results that a second-level cache does not hold; smaller ones are there when their reader comes.
constexpr size_t kPastCacheBytes = size_t{4} << 20;

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
  check_cu_seqlens(args.cu_seqlens, args.sequences, args.tokens, "hidden");
  if (args.mode == PoolMode::kMax && args.argmax == nullptr) {
    throw std::invalid_argument("mode 'max' needs the argmax output");
  }
  split(args.sequences, args.tokens * args.dim, threads,
        [&](int64_t begin, int64_t end) { ANCE_DISPATCH(isa, forward(args, begin, end)); });
}

void pool_normalize_backward(const PoolBackward& args, Isa isa, int threads) {
  check_cu_seqlens(args.cu_seqlens, args.sequences, args.tokens, "hidden");
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
