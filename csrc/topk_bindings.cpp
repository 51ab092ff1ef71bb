// Python bindings of the top-k search.
#include <utility>
#include <vector>

#include "array_arguments.h"
#include "bindings.h"
#include "few_products.h"
#include "topk_collector.h"

namespace ance_fast {
namespace {

// The collector together with the arrays that its filter points into.
struct BoundCollector {
  std::vector<py::array> owners;
  TopKFilter filter;
  TopKCollector engine;
};

}  // namespace

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

}  // namespace ance_fast
