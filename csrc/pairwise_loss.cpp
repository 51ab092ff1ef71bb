#include "pairwise_loss.h"

#include <algorithm>
#include <vector>

#include "pages.h"
#include "parallel.h"

namespace ance_fast {
namespace {

// What a row adds to the loss and to the gradient of the scale, before the mean over rows.
struct PairwiseRow {
  double loss, grad_scale;
};

#define ANCE_KERNELS "pairwise_loss.inl"
#include "each_isa.inl"

}  // namespace

void pairwise_loss(const PairwiseLoss& args, Isa isa, int threads) {
  const int64_t neg_elements = args.rows * args.negatives * args.dim;
  if (args.grad_scale) advise_huge_pages(args.grad_neg, static_cast<size_t>(neg_elements) * sizeof(float));
  std::vector<PairwiseRow> rows(static_cast<size_t>(args.rows));
  split(args.rows, neg_elements + 2 * args.rows * args.dim, threads, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> valid(static_cast<size_t>(args.negatives));
    std::vector<float> weights(valid.size());
    ANCE_DISPATCH(isa, loss_rows(args, rows.data(), valid.data(), weights.data(), begin, end));
  });
  PairwiseRow sum{};
  for (const PairwiseRow& row : rows) {
    sum.loss += row.loss;
    sum.grad_scale += row.grad_scale;
  }
  const double count = static_cast<double>(std::max<int64_t>(args.rows, 1));
  *args.loss = static_cast<float>(sum.loss / count);
  if (args.grad_scale) *args.grad_scale = static_cast<float>(sum.grad_scale / count);
}

}  // namespace ance_fast
