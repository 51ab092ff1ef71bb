// Python bindings of the CUDA part.
#pragma once

#include <pybind11/pybind11.h>

namespace ance_fast {

void bind_cuda(pybind11::module_& m);

}  // namespace ance_fast
