#include "few_products.h"

#include "parallel.h"

namespace ance_fast {
namespace {

namespace scalar {
#define ANCE_TARGET
#define ANCE_LANES 4
#include "lanes.inl"
#include "few_products.inl"
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace scalar

#if defined(__x86_64__)
namespace avx2 {
#define ANCE_TARGET __attribute__((target("avx2,fma")))
#define ANCE_LANES 8
#include "lanes.inl"
#include "few_products.inl"
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace avx2

namespace avx512 {
#define ANCE_TARGET __attribute__((target("avx512f,avx512dq,avx512vl,prefer-vector-width=512")))
#define ANCE_LANES 16
#include "lanes.inl"
#include "few_products.inl"
#undef ANCE_LANES
#undef ANCE_TARGET
}  // namespace avx512
#endif

}  // namespace

void few_products(const FewProducts& args, Isa isa, int threads) {
  split(args.count, args.count * args.dim, threads, [&](int64_t begin, int64_t end) {
    ANCE_DISPATCH(isa, products(args, begin, end));
  });
}

}  // namespace ance_fast
