// Python bindings of pooling.
#include "array_arguments.h"
#include "bindings.h"
#include "pool_normalize.h"

namespace ance_fast {

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

}  // namespace ance_fast
