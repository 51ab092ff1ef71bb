// Python bindings: check shapes and types, release the GIL, call the engine. No work is done here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>

#include "cls_attention.h"
#include "cpu_features.h"
#include "embedding_ring_bindings.h"
#include "encoder_kernels.h"
#include "few_products.h"
#include "packed_attention.h"
#include "pairwise_loss.h"
#include "pool_normalize.h"
#include "softmax_gradient.h"
#include "token_packer.h"
#include "topk_collector.h"
#ifdef ANCE_FAST_WITH_CUDA
#include "cuda/bindings.h"
#include "cuda/device.h"
#endif

namespace py = pybind11;

namespace ance_fast {
namespace {

std::string shape_of(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
  return text + "]";
}

// Type, contiguity and (where an entry is not -1) the shape of an argument.
template <typename T>
void check(const py::array& array, const char* name, std::initializer_list<int64_t> shape) {
  if (!py::isinstance<py::array_t<T>>(array)) {
    throw py::type_error(std::string(name) + " must be " + py::str(py::dtype::of<T>()).cast<std::string>() + ", got " +
                         py::str(array.dtype()).cast<std::string>());
  }
  if (!(array.flags() & py::array::c_style)) throw py::value_error(std::string(name) + " must be C-contiguous");
  bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
  py::ssize_t axis = 0;
  for (const int64_t size : shape) {
    fits = fits && (size < 0 || array.shape(axis) == size);
    ++axis;
  }
  if (fits) return;
  std::string wanted;
  for (const int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + (size < 0 ? "any" : std::to_string(size));
  throw py::value_error(std::string(name) + " must have shape [" + wanted + "], got " + shape_of(array));
}

template <typename T>
const T* in(const py::array& array, const char* name, std::initializer_list<int64_t> shape) {
  check<T>(array, name, shape);
  return static_cast<const T*>(array.data());
}

template <typename T>
const T* in(const std::optional<py::array>& array, const char* name, std::initializer_list<int64_t> shape) {
  return array ? in<T>(*array, name, shape) : nullptr;
}

template <typename T>
T* out(py::array& array, const char* name, std::initializer_list<int64_t> shape) {
  check<T>(array, name, shape);
  if (!array.writeable()) throw py::value_error(std::string(name) + " must be writeable");
  return static_cast<T*>(array.mutable_data());
}

template <typename T>
T* out(std::optional<py::array>& array, const char* name, std::initializer_list<int64_t> shape) {
  return array ? out<T>(*array, name, shape) : nullptr;
}

int64_t sequences_of(const py::array& cu_seqlens) {
  check<int32_t>(cu_seqlens, "cu_seqlens", {-1});
  if (cu_seqlens.shape(0) < 1) throw py::value_error("cu_seqlens must have at least one entry");
  return cu_seqlens.shape(0) - 1;
}

using OptionalArray = std::optional<py::array>;

void bind_pool_normalize(py::module_& m) {
  m.def(
      "pool_normalize_forward",
      [](const py::array& hidden, const py::array& cu_seqlens, const std::string& mode, const std::string& norm,
         const OptionalArray& weight, const OptionalArray& bias, float eps, py::array result, OptionalArray pooled,
         OptionalArray stats, OptionalArray argmax, int threads, const std::string& isa_name) {
        check<float>(hidden, "hidden", {-1, -1});
        const int64_t tokens = hidden.shape(0), dim = hidden.shape(1), sequences = sequences_of(cu_seqlens);
        const PoolForward args{in<float>(hidden, "hidden", {tokens, dim}),
                               in<int32_t>(cu_seqlens, "cu_seqlens", {sequences + 1}),
                               tokens,
                               sequences,
                               dim,
                               parse_pool_mode(mode),
                               parse_pool_norm(norm),
                               in<float>(weight, "weight", {dim}),
                               in<float>(bias, "bias", {dim}),
                               eps,
                               out<float>(result, "out", {sequences, dim}),
                               out<float>(pooled, "pooled", {sequences, dim}),
                               out<float>(stats, "stats", {sequences, 2}),
                               out<int32_t>(argmax, "argmax", {sequences, dim})};
        const Isa isa = parse_isa(isa_name);
        py::gil_scoped_release release;
        pool_normalize_forward(args, isa, threads);
      },
      py::arg("hidden"), py::arg("cu_seqlens"), py::kw_only(), py::arg("mode"), py::arg("norm"), py::arg("weight"),
      py::arg("bias"), py::arg("eps"), py::arg("out"), py::arg("pooled") = py::none(), py::arg("stats") = py::none(),
      py::arg("argmax") = py::none(), py::arg("threads") = 1, py::arg("isa") = "auto");

  m.def(
      "pool_normalize_backward",
      [](const py::array& grad_out, const py::array& cu_seqlens, const std::string& mode, const std::string& norm,
         const OptionalArray& weight, const OptionalArray& pooled, const OptionalArray& stats,
         const OptionalArray& argmax, float eps, py::array grad_hidden, OptionalArray grad_weight,
         OptionalArray grad_bias, int threads, const std::string& isa_name) {
        check<float>(grad_hidden, "grad_hidden", {-1, -1});
        const int64_t tokens = grad_hidden.shape(0), dim = grad_hidden.shape(1), sequences = sequences_of(cu_seqlens);
        const PoolBackward args{in<float>(grad_out, "grad_out", {sequences, dim}),
                                in<int32_t>(cu_seqlens, "cu_seqlens", {sequences + 1}),
                                tokens,
                                sequences,
                                dim,
                                parse_pool_mode(mode),
                                parse_pool_norm(norm),
                                in<float>(weight, "weight", {dim}),
                                in<float>(pooled, "pooled", {sequences, dim}),
                                in<float>(stats, "stats", {sequences, 2}),
                                in<int32_t>(argmax, "argmax", {sequences, dim}),
                                eps,
                                out<float>(grad_hidden, "grad_hidden", {tokens, dim}),
                                out<float>(grad_weight, "grad_weight", {dim}),
                                out<float>(grad_bias, "grad_bias", {dim})};
        const Isa isa = parse_isa(isa_name);
        py::gil_scoped_release release;
        pool_normalize_backward(args, isa, threads);
      },
      py::arg("grad_out"), py::arg("cu_seqlens"), py::kw_only(), py::arg("mode"), py::arg("norm"), py::arg("weight"),
      py::arg("pooled"), py::arg("stats"), py::arg("argmax"), py::arg("eps"), py::arg("grad_hidden"),
      py::arg("grad_weight") = py::none(), py::arg("grad_bias") = py::none(), py::arg("threads") = 1,
      py::arg("isa") = "auto");
}

void bind_encoder_kernels(py::module_& m) {
  m.def(
      "embed_layernorm",
      [](const py::array& input_ids, const py::array& position_ids, const py::array& words, const py::array& positions,
         const py::array& constant, const py::array& weight, const py::array& shift, float eps, py::array result,
         int threads, const std::string& isa_name) {
        check<float>(result, "out", {-1, -1});
        check<float>(words, "words", {-1, -1});
        check<float>(positions, "positions", {-1, -1});
        const int64_t rows = result.shape(0), dim = result.shape(1);
        const int64_t vocabulary = words.shape(0), longest = positions.shape(0);
        const EmbedLayerNorm args{in<int64_t>(input_ids, "input_ids", {rows}),
                                  in<int64_t>(position_ids, "position_ids", {rows}),
                                  in<float>(words, "words", {vocabulary, dim}),
                                  in<float>(positions, "positions", {longest, dim}),
                                  in<float>(constant, "constant", {dim}),
                                  in<float>(weight, "weight", {dim}),
                                  in<float>(shift, "shift", {dim}),
                                  eps,
                                  rows,
                                  dim,
                                  vocabulary,
                                  longest,
                                  out<float>(result, "out", {rows, dim})};
        const Isa isa = parse_isa(isa_name);
        py::gil_scoped_release release;
        embed_layernorm(args, isa, threads);
      },
      py::arg("input_ids"), py::arg("position_ids"), py::arg("words"), py::arg("positions"), py::arg("constant"),
      py::arg("weight"), py::arg("shift"), py::kw_only(), py::arg("eps"), py::arg("out"), py::arg("threads") = 1,
      py::arg("isa") = "auto");

  m.def(
      "bias_gelu",
      [](py::array x, const py::array& bias, int threads, const std::string& isa_name) {
        check<float>(x, "x", {-1, -1});
        const int64_t rows = x.shape(0), dim = x.shape(1);
        const BiasGelu args{out<float>(x, "x", {rows, dim}), in<float>(bias, "bias", {dim}), rows, dim};
        const Isa isa = parse_isa(isa_name);
        py::gil_scoped_release release;
        bias_gelu(args, isa, threads);
      },
      py::arg("x"), py::arg("bias"), py::kw_only(), py::arg("threads") = 1, py::arg("isa") = "auto");

  m.def(
      "bias_residual_layernorm",
      [](py::array x, const py::array& bias, const py::array& residual, const py::array& weight,
         const py::array& shift, float eps, int threads, const std::string& isa_name) {
        check<float>(x, "x", {-1, -1});
        const int64_t rows = x.shape(0), dim = x.shape(1);
        const BiasResidualLayerNorm args{out<float>(x, "x", {rows, dim}),
                                         in<float>(bias, "bias", {dim}),
                                         in<float>(residual, "residual", {rows, dim}),
                                         in<float>(weight, "weight", {dim}),
                                         in<float>(shift, "shift", {dim}),
                                         eps,
                                         rows,
                                         dim};
        const Isa isa = parse_isa(isa_name);
        py::gil_scoped_release release;
        bias_residual_layernorm(args, isa, threads);
      },
      py::arg("x"), py::arg("bias"), py::arg("residual"), py::arg("weight"), py::arg("shift"), py::kw_only(),
      py::arg("eps"), py::arg("threads") = 1, py::arg("isa") = "auto");

  m.def(
      "packed_attention",
      [](const py::array& qkv, const py::array& bias, const py::array& cu_seqlens, int64_t heads, float scale,
         py::array result, int threads, const std::string& isa_name) {
        check<float>(result, "out", {-1, -1});
        const int64_t tokens = result.shape(0), width = result.shape(1), sequences = sequences_of(cu_seqlens);
        if (heads < 1 || width % heads != 0) throw py::value_error("out must be as wide as a multiple of heads");
        const PackedAttention args{in<float>(qkv, "qkv", {tokens, 3 * width}),
                                   in<float>(bias, "bias", {3 * width}),
                                   in<int32_t>(cu_seqlens, "cu_seqlens", {sequences + 1}),
                                   tokens,
                                   sequences,
                                   heads,
                                   width / heads,
                                   scale,
                                   out<float>(result, "out", {tokens, width})};
        const Isa isa = parse_isa(isa_name);
        py::gil_scoped_release release;
        packed_attention(args, isa, threads);
      },
      py::arg("qkv"), py::arg("bias"), py::arg("cu_seqlens"), py::kw_only(), py::arg("heads"), py::arg("scale"),
      py::arg("out"), py::arg("threads") = 1, py::arg("isa") = "auto");
}

void bind_cls_attention(py::module_& m) {
  m.def(
      "packed_cls_attention",
      [](const py::array& q, const py::array& kv, const py::array& cu_seqlens, int64_t heads, float scale,
         py::array result, int threads, const std::string& isa_name) {
        check<float>(q, "q", {-1, -1});
        check<float>(kv, "kv", {-1, -1});
        const int64_t sequences = q.shape(0), width = q.shape(1), tokens = kv.shape(0);
        if (heads < 1 || width % heads != 0) throw py::value_error("q must be as wide as a multiple of heads");
        const ClsAttention args{in<float>(q, "q", {sequences, width}),
                                in<float>(kv, "kv", {tokens, 2 * width}),
                                in<int32_t>(cu_seqlens, "cu_seqlens", {sequences + 1}),
                                tokens,
                                sequences,
                                heads,
                                width / heads,
                                scale,
                                out<float>(result, "out", {sequences, width})};
        const Isa isa = parse_isa(isa_name);
        py::gil_scoped_release release;
        cls_attention(args, isa, threads);
      },
      py::arg("q"), py::arg("kv"), py::arg("cu_seqlens"), py::kw_only(), py::arg("heads"), py::arg("scale"),
      py::arg("out"), py::arg("threads") = 1, py::arg("isa") = "auto");
}

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

void bind_softmax_gradient(py::module_& m) {
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

void bind_pairwise_loss(py::module_& m) {
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
}

// The packer together with the arrays it points into.
struct BoundPacker {
  std::vector<py::array> owners;
  TokenPacker engine;
};

TokenShard shard_of(const py::array& values, const py::array& offsets) {
  const bool wide_values = py::isinstance<py::array_t<int32_t>>(values);
  const bool wide_offsets = py::isinstance<py::array_t<int64_t>>(offsets);
  if (wide_values) {
    check<int32_t>(values, "values", {-1});
  } else {
    check<uint16_t>(values, "values (uint16 or int32)", {-1});
  }
  if (wide_offsets) {
    check<int64_t>(offsets, "offsets", {-1});
  } else {
    check<int32_t>(offsets, "offsets (int32 or int64)", {-1});
  }
  if (offsets.shape(0) < 1) throw py::value_error("offsets must have at least one entry");
  return {values.data(), wide_values, values.shape(0), offsets.data(), wide_offsets, offsets.shape(0) - 1};
}

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

void bind_token_packer(py::module_& m) {
  py::class_<BoundPacker>(m, "TokenPacker")
      .def(py::init([](const std::vector<std::pair<py::array, py::array>>& shards, int64_t max_length, bool keep_last) {
             std::vector<py::array> owners;
             std::vector<TokenShard> views;
             for (const auto& [values, offsets] : shards) {
               views.push_back(shard_of(values, offsets));
               owners.push_back(values);
               owners.push_back(offsets);
             }
             std::optional<TokenPacker> engine;
             {
               py::gil_scoped_release release;
               engine.emplace(std::move(views), max_length, keep_last);
             }
             return new BoundPacker{std::move(owners), std::move(*engine)};
           }),
           py::arg("shards"), py::kw_only(), py::arg("max_length") = 0, py::arg("keep_last") = true)
      .def("__len__", [](const BoundPacker& self) { return self.engine.rows(); })
      .def(
          "lengths",
          [](const BoundPacker& self, const py::array& rows) {
            const int64_t* request = in<int64_t>(rows, "rows", {-1});
            const int64_t count = rows.shape(0);
            py::array_t<int64_t> result(count);
            int64_t* target = result.mutable_data();
            {
              py::gil_scoped_release release;
              self.engine.lengths(request, count, target);
            }
            return result;
          },
          py::arg("rows"))
      .def(
          "plan",
          [](const BoundPacker& self, const py::array& rows, int64_t token_budget, int64_t window,
             int64_t max_sequences) {
            const int64_t* request = in<int64_t>(rows, "rows", {-1});
            const int64_t count = rows.shape(0);
            PackPlan plan;
            {
              py::gil_scoped_release release;
              plan = self.engine.plan(request, count, token_budget, window, max_sequences);
            }
            return py::make_tuple(to_array(plan.order), to_array(plan.batch_offsets));
          },
          py::arg("rows"), py::kw_only(), py::arg("token_budget"), py::arg("window"), py::arg("max_sequences"))
      .def(
          "pack",
          [](const BoundPacker& self, const py::array& rows, py::array ids, py::array positions, py::array cu_seqlens,
             int64_t position_offset) {
            const int64_t* request = in<int64_t>(rows, "rows", {-1});
            const int64_t count = rows.shape(0);
            int64_t* ids_out = out<int64_t>(ids, "ids", {-1});
            const int64_t capacity = ids.shape(0);
            int64_t* positions_out = out<int64_t>(positions, "positions", {capacity});
            int32_t* offsets_out = out<int32_t>(cu_seqlens, "cu_seqlens", {count + 1});
            py::gil_scoped_release release;
            self.engine.pack(request, count, position_offset, capacity, ids_out, positions_out, offsets_out);
          },
          py::arg("rows"), py::kw_only(), py::arg("ids"), py::arg("positions"), py::arg("cu_seqlens"),
          py::arg("position_offset") = 0);
}

// The collector together with the arrays that its filter points into.
struct BoundCollector {
  std::vector<py::array> owners;
  TopKFilter filter;
  TopKCollector engine;
};

void bind_topk(py::module_& m) {
  m.def(
      "few_products",
      [](const py::array& queries, const py::array& vectors, py::array scores, int threads,
         const std::string& isa_name) {
        check<float>(queries, "queries", {-1, -1});
        const int64_t rows = queries.shape(0), dim = queries.shape(1);
        check<float>(vectors, "vectors", {-1, dim});
        const int64_t count = vectors.shape(0);
        const FewProducts args{in<float>(queries, "queries", {rows, dim}), in<float>(vectors, "vectors", {count, dim}),
                               rows, count, dim, out<float>(scores, "scores", {rows, count})};
        const Isa isa = parse_isa(isa_name);
        py::gil_scoped_release release;
        few_products(args, isa, threads);
      },
      py::arg("queries"), py::arg("vectors"), py::arg("scores"), py::kw_only(), py::arg("threads") = 1,
      py::arg("isa") = "auto");

  py::class_<BoundCollector>(m, "TopKCollector")
      .def(py::init([](int64_t rows, int64_t k, const OptionalArray& allow, const OptionalArray& exclude_offsets,
                       const OptionalArray& excluded) {
             if (exclude_offsets.has_value() != excluded.has_value()) {
               throw py::value_error("exclude_offsets and excluded go together");
             }
             std::vector<py::array> owners;
             for (const OptionalArray& array : {allow, exclude_offsets, excluded}) {
               if (array) owners.push_back(*array);
             }
             const TopKFilter filter{in<bool>(allow, "allow", {-1}), allow ? allow->shape(0) : 0,
                                     in<int64_t>(exclude_offsets, "exclude_offsets", {rows + 1}),
                                     in<int64_t>(excluded, "excluded", {-1})};
             check_lists(filter, rows, excluded ? excluded->shape(0) : 0);
             return new BoundCollector{std::move(owners), filter, TopKCollector(rows, k)};
           }),
           py::arg("rows"), py::arg("k"), py::kw_only(), py::arg("allow") = py::none(),
           py::arg("exclude_offsets") = py::none(), py::arg("excluded") = py::none())
      .def(
          "add",
          [](BoundCollector& self, const py::array& scores, int64_t row, int64_t first, int threads,
             const std::string& isa_name) {
            check<float>(scores, "scores", {-1, -1});
            const ScoreTile tile{in<float>(scores, "scores", {-1, -1}), row, scores.shape(0), first, scores.shape(1)};
            const Isa isa = parse_isa(isa_name);
            py::gil_scoped_release release;
            self.engine.add(tile, self.filter, isa, threads);
          },
          py::arg("scores"), py::kw_only(), py::arg("row"), py::arg("first"), py::arg("threads") = 1,
          py::arg("isa") = "auto")
      .def(
          "result",
          [](BoundCollector& self, py::array scores, py::array positions, int threads) {
            const int64_t rows = self.engine.rows(), k = self.engine.k();
            float* scores_out = out<float>(scores, "scores", {rows, k});
            int64_t* positions_out = out<int64_t>(positions, "positions", {rows, k});
            py::gil_scoped_release release;
            self.engine.result(scores_out, positions_out, threads);
          },
          py::arg("scores"), py::arg("positions"), py::kw_only(), py::arg("threads") = 1);
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["cpu_features"] = cpu_features();
  info["isa"] = isa_name(best_isa());
#ifdef ANCE_FAST_WITH_CUDA
  const CudaInfo cuda = cuda_info();
  info["cuda"] = true;
  info["cuda_runtime_version"] = cuda.runtime_version;
  info["cuda_driver_version"] = cuda.driver_version;
  info["cuda_device_count"] = cuda.device_count;
  info["cuda_error"] = cuda.error;
#else
  info["cuda"] = false;
#endif
  return info;
}

}  // namespace
}  // namespace ance_fast

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of ance_fast: kernels, token packing and the embedding ring. Use it through the package.";
  m.def("build_info", &ance_fast::build_info);
  // Apart from build_info, which starts the CUDA driver to count devices: a later fork could not use it.
  m.def("best_isa", [] { return ance_fast::isa_name(ance_fast::best_isa()); });
  ance_fast::bind_pool_normalize(m);
  ance_fast::bind_encoder_kernels(m);
  ance_fast::bind_cls_attention(m);
  ance_fast::bind_pairwise_loss(m);
  ance_fast::bind_softmax_gradient(m);
  ance_fast::bind_token_packer(m);
  ance_fast::bind_topk(m);
  ance_fast::bind_embedding_ring(m);
#ifdef ANCE_FAST_WITH_CUDA
  ance_fast::bind_cuda(m);
#endif
}
