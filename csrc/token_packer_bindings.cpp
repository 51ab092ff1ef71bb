// Python bindings of the token packer.
#include <optional>
#include <utility>
#include <vector>

#include "array_arguments.h"
#include "bindings.h"
#include "token_packer.h"

namespace ance_fast {
namespace {

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

}  // namespace

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
          [](const BoundPacker& self, const py::array& rows, const py::array& starts, py::array ids,
             py::array positions, py::array cu_seqlens, int64_t position_offset) {
            const int64_t* request = in<int64_t>(rows, "rows", {-1});
            const int64_t* edges = in<int64_t>(starts, "starts", {-1});
            const int64_t count = rows.shape(0), batches = starts.shape(0) - 1;
            if (batches < 0 || edges[0] != 0 || edges[batches] != count) {
              throw py::value_error("starts must go from 0 to the number of rows");
            }
            int64_t* ids_out = out<int64_t>(ids, "ids", {-1});
            const int64_t capacity = ids.shape(0);
            int64_t* positions_out = out<int64_t>(positions, "positions", {capacity});
            int32_t* offsets_out = out<int32_t>(cu_seqlens, "cu_seqlens", {count + batches});
            std::vector<int64_t> longest(static_cast<size_t>(batches));
            {
              py::gil_scoped_release release;
              self.engine.pack(request, edges, batches, position_offset, capacity, ids_out, positions_out, offsets_out,
                               longest.data());
            }
            return longest;
          },
          py::arg("rows"), py::arg("starts"), py::kw_only(), py::arg("ids"), py::arg("positions"),
          py::arg("cu_seqlens"), py::arg("position_offset") = 0);
}

}  // namespace ance_fast
