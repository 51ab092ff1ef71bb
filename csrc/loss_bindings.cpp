// Python bindings of the losses.
#include "array_arguments.h"
#include "bindings.h"
#include "pairwise_loss.h"
#include "softmax_gradient.h"

namespace ance_fast {
namespace {

// The lists after `scale`: target_offsets, target_columns, masked_offsets, masked_keys, key_offsets, key_columns; the
// last four are None without masks.
SoftmaxBlock softmax_block(py::array& logits, int64_t column_begin, float scale, const py::args& lists) {
  check<float>(logits, "logits", {-1, -1});
  const int64_t rows = logits.shape(0), columns = logits.shape(1);
  if (lists.size() != 6) throw py::type_error("six lists are expected: targets, masked keys and keys");
  const auto list = [&lists](size_t i) { return lists[i].cast<OptionalArray>(); };
  return {out<float>(logits, "logits", {rows, columns}),
          rows,
          columns,
          column_begin,
          scale,
          in<int64_t>(list(0), "target_offsets", {rows + 1}),
          in<int64_t>(list(1), "target_columns", {-1}),
          in<int64_t>(list(2), "masked_offsets", {rows + 1}),
          in<int64_t>(list(3), "masked_keys", {-1}),
          in<int64_t>(list(4), "key_offsets", {-1}),
          in<int64_t>(list(5), "key_columns", {-1})};
}

int64_t targets_of(const SoftmaxBlock& block) {
  return block.target_offsets[block.rows] - block.target_offsets[0];
}

}  // namespace

void bind_loss(py::module_& m) {
  m.def(
      "pairwise_loss",
      [](const py::array& q, const py::array& pos, const py::array& neg, py::array loss, OptionalArray grad_q,
         OptionalArray grad_pos, OptionalArray grad_neg, OptionalArray grad_scale, double scale,
         const OptionalArray& mask, int threads, const std::string& isa_name) {
        const int given = grad_q.has_value() + grad_pos.has_value() + grad_neg.has_value() + grad_scale.has_value();
        if (given != 0 && given != 4) {
          throw py::value_error("grad_q, grad_pos, grad_neg and grad_scale go together: all or none");
        }
        check<float>(neg, "neg", {-1, -1, -1});
        const int64_t rows = neg.shape(0), negatives = neg.shape(1), dim = neg.shape(2);
        const PairwiseLoss args{in<float>(q, "q", {rows, dim}),
                                in<float>(pos, "pos", {rows, dim}),
                                in<float>(neg, "neg", {rows, negatives, dim}),
                                rows,
                                negatives,
                                dim,
                                scale,
                                in<bool>(mask, "mask", {rows, negatives}),
                                out<float>(loss, "loss", {}),
                                out<float>(grad_q, "grad_q", {rows, dim}),
                                out<float>(grad_pos, "grad_pos", {rows, dim}),
                                out<float>(grad_neg, "grad_neg", {rows, negatives, dim}),
                                out<float>(grad_scale, "grad_scale", {})};
        const Isa isa = parse_isa(isa_name);
        py::gil_scoped_release release;
        pairwise_loss(args, isa, threads);
      },
      py::arg("q"), py::arg("pos"), py::arg("neg"), py::arg("loss"), py::arg("grad_q") = py::none(),
      py::arg("grad_pos") = py::none(), py::arg("grad_neg") = py::none(), py::arg("grad_scale") = py::none(),
      py::kw_only(), py::arg("scale"), py::arg("mask") = py::none(), py::arg("threads") = 1,
      py::arg("isa") = "auto");

  m.def(
      "softmax_gradient",
      [](py::array logits, float scale, const py::args& lists, py::array losses, bool gradient, int threads,
         const std::string& isa_name) {
        const SoftmaxBlock block = softmax_block(logits, 0, scale, lists);
        float* losses_out = out<float>(losses, "losses", {block.rows});
        const Isa isa = parse_isa(isa_name);
        py::gil_scoped_release release;
        softmax_gradient(block, losses_out, gradient, isa, threads);
      },
      py::arg("logits"), py::arg("scale"), py::kw_only(), py::arg("losses"), py::arg("gradient"),
      py::arg("threads") = 1, py::arg("isa") = "auto");

  m.def(
      "softmax_statistics",
      [](py::array logits, float scale, const py::args& lists, int64_t column_begin, py::array top, py::array sum,
         py::array target_logits, int threads, const std::string& isa_name) {
        const SoftmaxBlock block = softmax_block(logits, column_begin, scale, lists);
        float* top_out = out<float>(top, "top", {block.rows});
        float* sum_out = out<float>(sum, "sum", {block.rows});
        float* logits_out = out<float>(target_logits, "target_logits", {targets_of(block)});
        const Isa isa = parse_isa(isa_name);
        py::gil_scoped_release release;
        softmax_statistics(block, top_out, sum_out, logits_out, isa, threads);
      },
      py::arg("logits"), py::arg("scale"), py::kw_only(), py::arg("column_begin"), py::arg("top"), py::arg("sum"),
      py::arg("target_logits"), py::arg("threads") = 1, py::arg("isa") = "auto");

  m.def(
      "softmax_tile_gradient",
      [](py::array logits, float scale, const py::args& lists, int64_t column_begin, const py::array& top,
         const py::array& factor, const py::array& slopes, int threads, const std::string& isa_name) {
        const SoftmaxBlock block = softmax_block(logits, column_begin, scale, lists);
        const float* top_in = in<float>(top, "top", {block.rows});
        const float* factor_in = in<float>(factor, "factor", {block.rows});
        const float* slopes_in = in<float>(slopes, "slopes", {targets_of(block)});
        const Isa isa = parse_isa(isa_name);
        py::gil_scoped_release release;
        softmax_tile_gradient(block, top_in, factor_in, slopes_in, isa, threads);
      },
      py::arg("logits"), py::arg("scale"), py::kw_only(), py::arg("column_begin"), py::arg("top"), py::arg("factor"),
      py::arg("slopes"), py::arg("threads") = 1, py::arg("isa") = "auto");
}

}  // namespace ance_fast
