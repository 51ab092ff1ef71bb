// Arrays of Python as arguments of the engine: checked here, so that a binding only names what it wants.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

namespace ance_fast {

namespace py = pybind11;
using OptionalArray = std::optional<py::array>;

inline std::string shape_of(const py::array& array) {
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
const T* in(const OptionalArray& array, const char* name, std::initializer_list<int64_t> shape) {
  return array ? in<T>(*array, name, shape) : nullptr;
}

template <typename T>
T* out(py::array& array, const char* name, std::initializer_list<int64_t> shape) {
  check<T>(array, name, shape);
  if (!array.writeable()) throw py::value_error(std::string(name) + " must be writeable");
  return static_cast<T*>(array.mutable_data());
}

template <typename T>
T* out(OptionalArray& array, const char* name, std::initializer_list<int64_t> shape) {
  return array ? out<T>(*array, name, shape) : nullptr;
}

inline int64_t sequences_of(const py::array& cu_seqlens) {
  check<int32_t>(cu_seqlens, "cu_seqlens", {-1});
  if (cu_seqlens.shape(0) < 1) throw py::value_error("cu_seqlens must have at least one entry");
  return cu_seqlens.shape(0) - 1;
}

}  // namespace ance_fast
