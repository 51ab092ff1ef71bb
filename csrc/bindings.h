// The parts of the Python module, NAME in NAME_bindings.cpp: they check shapes and types, release the GIL and call the
// engine. No work is done there.
#pragma once

#include <pybind11/pybind11.h>

namespace ance_fast {

void bind_pool_normalize(pybind11::module_& m);
void bind_encoder(pybind11::module_& m);
void bind_loss(pybind11::module_& m);
void bind_token_packer(pybind11::module_& m);
void bind_topk(pybind11::module_& m);
void bind_embedding_ring(pybind11::module_& m);
void bind_sampler(pybind11::module_& m);
void bind_answers(pybind11::module_& m);

}  // namespace ance_fast
