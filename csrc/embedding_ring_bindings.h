// Python bindings of the embedding ring.
#pragma once

#include <pybind11/pybind11.h>

namespace ance_fast {

void bind_embedding_ring(pybind11::module_& m);

}  // namespace ance_fast
