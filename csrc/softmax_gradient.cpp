#include "softmax_gradient.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"

namespace ance_fast {
namespace {

#define ANCE_KERNELS "softmax_gradient.inl"
#include "each_isa.inl"

}  // namespace

void softmax_gradient(const SoftmaxBlock& block, float* losses, bool gradient, Isa isa, int threads) {
  int64_t most = 0;
  for (int64_t r = 0; r < block.rows; ++r) {
    most = std::max(most, block.target_offsets[r + 1] - block.target_offsets[r]);
    for (int64_t t = block.target_offsets[r]; t < block.target_offsets[r + 1]; ++t) {
      if (block.target_columns[t] < 0 || block.target_columns[t] >= block.columns) {
        throw std::invalid_argument("target column " + std::to_string(block.target_columns[t]) + " is not among the " +
                                    std::to_string(block.columns) + " columns");
      }
    }
  }
  split(block.rows, block.rows * block.columns, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> slopes(static_cast<size_t>(most));
    ANCE_DISPATCH(isa, gradient_rows(block, losses, gradient, slopes.data(), begin, end));
  });
}

void softmax_statistics(const SoftmaxBlock& block, float* top, float* sum, float* target_logits, Isa isa, int threads) {
  split(block.rows, block.rows * block.columns, threads, [&](int64_t begin, int64_t end) {
    ANCE_DISPATCH(isa, statistics_rows(block, top, sum, target_logits, begin, end));
  });
}

void softmax_tile_gradient(const SoftmaxBlock& block, const float* top, const float* factor, const float* slopes,
                           Isa isa, int threads) {
  split(block.rows, block.rows * block.columns, threads, [&](int64_t begin, int64_t end) {
    ANCE_DISPATCH(isa, tile_gradient_rows(block, top, factor, slopes, begin, end));
  });
}

}  // namespace ance_fast
