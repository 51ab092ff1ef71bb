// Device memory comes in as addresses (0: null) and streams as handles, so that nothing here depends on the library
// that owns them; the caller answers for sizes and lifetimes. The GIL is released around every launch.
#include "cuda/bindings.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "cuda/pool_normalize.h"

namespace py = pybind11;

namespace ance_fast {
namespace {

using Address = uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

DType parse_dtype(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "float16") return DType::kFloat16;
  if (name == "bfloat16") return DType::kBFloat16;
  throw std::invalid_argument("dtype is '" + name + "'; it must be float32, float16 or bfloat16");
}

void raise_on(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

void forward(Address hidden, Address cu_seqlens, int64_t tokens, int64_t sequences, int64_t dim,
             const std::string& mode, const std::string& norm, const std::string& hidden_dtype,
             const std::string& out_dtype, Address weight, Address bias, float eps, int32_t multiprocessors,
             Address out, Address pooled, Address stats, Address argmax, Address workspace, int64_t workspace_bytes,
             Address stream, Address resident, Address resident_rows, const std::string& resident_dtype,
             Address host_slot, const std::string& host_dtype) {
  const PoolForwardCuda args{pointer<const void>(hidden),
                             pointer<const int32_t>(cu_seqlens),
                             tokens,
                             sequences,
                             dim,
                             parse_pool_mode(mode),
                             parse_pool_norm(norm),
                             parse_dtype(hidden_dtype),
                             parse_dtype(out_dtype),
                             parse_dtype(resident_dtype),
                             parse_dtype(host_dtype),
                             pointer<const float>(weight),
                             pointer<const float>(bias),
                             eps,
                             multiprocessors,
                             pointer<void>(out),
                             pointer<float>(pooled),
                             pointer<float>(stats),
                             pointer<int32_t>(argmax),
                             pointer<void>(resident),
                             pointer<const int64_t>(resident_rows),
                             pointer<void>(host_slot),
                             pointer<void>(workspace),
                             workspace_bytes};
  py::gil_scoped_release release;
  raise_on(pool_normalize_forward_cuda(args, pointer<CUstream_st>(stream)), "pool_normalize_forward_cuda");
}

void backward(Address grad_out, Address cu_seqlens, int64_t tokens, int64_t sequences, int64_t dim,
              const std::string& mode, const std::string& norm, const std::string& grad_out_dtype,
              const std::string& grad_hidden_dtype, Address weight, Address pooled, Address stats, Address argmax,
              float eps, int32_t multiprocessors, Address grad_hidden, Address grad_weight, Address grad_bias,
              Address workspace, int64_t workspace_bytes, Address stream) {
  const PoolBackwardCuda args{pointer<const void>(grad_out),
                              pointer<const int32_t>(cu_seqlens),
                              tokens,
                              sequences,
                              dim,
                              parse_pool_mode(mode),
                              parse_pool_norm(norm),
                              parse_dtype(grad_out_dtype),
                              parse_dtype(grad_hidden_dtype),
                              pointer<const float>(weight),
                              pointer<const float>(pooled),
                              pointer<const float>(stats),
                              pointer<const int32_t>(argmax),
                              eps,
                              multiprocessors,
                              pointer<void>(grad_hidden),
                              pointer<float>(grad_weight),
                              pointer<float>(grad_bias),
                              pointer<void>(workspace),
                              workspace_bytes};
  py::gil_scoped_release release;
  raise_on(pool_normalize_backward_cuda(args, pointer<CUstream_st>(stream)), "pool_normalize_backward_cuda");
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.attr("pool_max_dim_cuda") = kPoolMaxDim;
  m.def(
      "pool_forward_workspace_cuda",
      [](int64_t tokens, int64_t sequences, int64_t dim, const std::string& mode, int32_t multiprocessors) {
        return pool_forward_workspace(tokens, sequences, dim, parse_pool_mode(mode), multiprocessors);
      },
      py::arg("tokens"), py::arg("sequences"), py::arg("dim"), py::arg("mode"), py::arg("multiprocessors"));
  m.def("pool_backward_workspace_cuda", &pool_backward_workspace, py::arg("sequences"), py::arg("dim"),
        py::arg("with_parameters"));
  m.def("pool_normalize_forward_cuda", &forward, py::arg("hidden"), py::arg("cu_seqlens"), py::kw_only(),
        py::arg("tokens"), py::arg("sequences"), py::arg("dim"), py::arg("mode"), py::arg("norm"),
        py::arg("hidden_dtype"), py::arg("out_dtype"), py::arg("weight"), py::arg("bias"), py::arg("eps"),
        py::arg("multiprocessors"), py::arg("out"), py::arg("pooled"), py::arg("stats"), py::arg("argmax"),
        py::arg("workspace"), py::arg("workspace_bytes"), py::arg("stream"), py::arg("resident") = 0,
        py::arg("resident_rows") = 0, py::arg("resident_dtype") = "float32", py::arg("host_slot") = 0,
        py::arg("host_dtype") = "float32");
  m.def("pool_normalize_backward_cuda", &backward, py::arg("grad_out"), py::arg("cu_seqlens"), py::kw_only(),
        py::arg("tokens"), py::arg("sequences"), py::arg("dim"), py::arg("mode"), py::arg("norm"),
        py::arg("grad_out_dtype"), py::arg("grad_hidden_dtype"), py::arg("weight"), py::arg("pooled"),
        py::arg("stats"), py::arg("argmax"), py::arg("eps"), py::arg("multiprocessors"), py::arg("grad_hidden"),
        py::arg("grad_weight"), py::arg("grad_bias"), py::arg("workspace"), py::arg("workspace_bytes"),
        py::arg("stream"));
}

}  // namespace ance_fast
