#include "few_products.h"

#include "parallel.h"

namespace ance_fast {
namespace {

#define ANCE_KERNELS "few_products.inl"
#include "each_isa.inl"

}  // namespace

void few_products(const FewProducts& args, Isa isa, int threads) {
  split(args.count, args.count * args.dim, threads, [&](int64_t begin, int64_t end) {
    ANCE_DISPATCH(isa, products(args, begin, end));
  });
}

}  // namespace ance_fast
