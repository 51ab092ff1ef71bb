// The Python module: what it was built with, and its parts.
#include "bindings.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu_features.h"
#ifdef ANCE_FAST_WITH_CUDA
#include "cuda/bindings.h"
#include "cuda/device.h"
#endif

namespace py = pybind11;

namespace ance_fast {
namespace {

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
  ance_fast::bind_encoder(m);
  ance_fast::bind_loss(m);
  ance_fast::bind_token_packer(m);
  ance_fast::bind_topk(m);
  ance_fast::bind_embedding_ring(m);
  ance_fast::bind_sampler(m);
  ance_fast::bind_answers(m);
#ifdef ANCE_FAST_WITH_CUDA
  ance_fast::bind_cuda(m);
#endif
}
