#include "encoder_kernels.h"

#include <stdexcept>
#include <string>

#include "parallel.h"

namespace ance_fast {
namespace {

#define ANCE_KERNELS "encoder_kernels.inl"
#include "each_isa.inl"

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

}  // namespace ance_fast
