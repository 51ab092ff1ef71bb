// Python bindings of the encoder's inference stack.
#include "array_arguments.h"
#include "bindings.h"
#include "cls_attention.h"
#include "encoder_kernels.h"
#include "packed_attention.h"

namespace ance_fast {

void bind_encoder(py::module_& m) {
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

}  // namespace ance_fast
