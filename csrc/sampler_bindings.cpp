// Python bindings of the negative sampler.
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "array_arguments.h"
#include "bindings.h"
#include "negative_sampler.h"

namespace ance_fast {
namespace {

constexpr const char* kUniteNames[kUniteReasons] = {"window", "positive", "document", "content", "unsampled",
                                                    "repeated"};
constexpr const char* kSelectNames[kSelectReasons] = {"answer", "unscored",   "low",     "high",  "margin",
                                                      "percentage", "teacher", "near_duplicate", "beyond"};

void check_offsets(const int64_t* offsets, int64_t lists, int64_t values, const char* name) {
  bool rising = offsets[0] == 0 && offsets[lists] == values;
  for (int64_t i = 0; i < lists && rising; ++i) rising = offsets[i] <= offsets[i + 1];
  if (!rising) throw py::value_error(std::string(name) + " must rise from 0 to the number of values");
}

// (offsets int64 [lists + 1], passage rows int64, ascending within a list)
PositiveLists positives_of(const std::pair<py::array, py::array>& positives, int64_t lists, int64_t passages) {
  const int64_t* offsets = in<int64_t>(positives.first, "positive offsets", {lists + 1});
  const int64_t* rows = in<int64_t>(positives.second, "positive rows", {-1});
  check_offsets(offsets, lists, positives.second.shape(0), "positive offsets");
  for (int64_t list = 0; list < lists; ++list) {
    for (int64_t i = offsets[list]; i < offsets[list + 1]; ++i) {
      if (rows[i] < 0 || rows[i] >= passages || (i > offsets[list] && rows[i] < rows[i - 1])) {
        throw py::value_error("positive rows must ascend within a query and lie in 0 .. passages - 1");
      }
    }
  }
  return {offsets, rows};
}

PassageGroups groups_of(int64_t passages, const OptionalArray& documents, const OptionalArray& contents) {
  if (passages < 0) throw py::value_error("passages must not be negative");
  return {passages, in<int64_t>(documents, "documents", {passages}), in<int64_t>(contents, "contents", {passages})};
}

template <size_t kReasons>
py::dict by_name(const char* const (&names)[kReasons], const std::vector<int64_t>& counts) {
  py::dict result;
  for (size_t i = 0; i < kReasons; ++i) result[names[i]] = counts[i];
  return result;
}

Weighting weighting_of(const std::string& name) {
  const std::map<std::string, Weighting> known = {
      {"uniform", Weighting::kUniform}, {"top", Weighting::kTop},       {"rank-power", Weighting::kRankPower},
      {"softmax", Weighting::kSoftmax}, {"simans", Weighting::kSimans}, {"margin-bins", Weighting::kMarginBins}};
  const auto found = known.find(name);
  if (found == known.end()) throw py::value_error("unknown weighting " + name);
  return found->second;
}

}  // namespace

void bind_sampler(py::module_& m) {
  m.def(
      "unite_candidates",
      [](const std::vector<std::pair<py::array, py::array>>& sources, const std::pair<py::array, py::array>& positives,
         const py::array& queries, int64_t passages, const OptionalArray& documents, const OptionalArray& contents,
         int64_t rank_min, int64_t rank_max, int64_t per_source, uint64_t seed, uint64_t generation, py::array rows,
         py::array scores, py::array origins, int threads) {
        check<int32_t>(rows, "rows", {-1, -1});
        UniteArguments args{};
        args.queries = rows.shape(0);
        args.width = rows.shape(1);
        args.query_ids = in<int64_t>(queries, "queries", {args.queries});
        int64_t together = 0;
        for (const auto& [source_rows, source_scores] : sources) {
          check<int32_t>(source_rows, "a source's rows", {args.queries, -1});
          const int64_t width = source_rows.shape(1);
          args.sources.push_back({in<int32_t>(source_rows, "a source's rows", {args.queries, width}),
                                  in<float>(source_scores, "a source's scores", {args.queries, width}), width});
          together += width;
        }
        if (together != args.width) throw py::value_error("rows must be as wide as the sources together");
        args.passages = groups_of(passages, documents, contents);
        args.positives = positives_of(positives, args.queries, passages);
        args.rank_min = rank_min;
        args.rank_max = rank_max;
        args.per_source = per_source;
        args.seed = seed;
        args.generation = generation;
        args.rows = out<int32_t>(rows, "rows", {args.queries, args.width});
        args.scores = out<float>(scores, "scores", {args.queries, args.width});
        args.origins = out<uint8_t>(origins, "origins", {args.queries, args.width});
        std::vector<int64_t> counts(kUniteReasons);
        {
          py::gil_scoped_release release;
          unite(args, counts.data(), threads);
        }
        return by_name(kUniteNames, counts);
      },
      py::arg("sources"), py::arg("positives"), py::kw_only(), py::arg("queries"), py::arg("passages"),
      py::arg("documents"), py::arg("contents"), py::arg("rank_min"), py::arg("rank_max"), py::arg("per_source"), py::arg("seed"),
      py::arg("generation"), py::arg("rows"), py::arg("scores"), py::arg("origins"), py::arg("threads") = 1);

  m.def(
      "select_candidates",
      [](const py::array& rows, const py::array& scores, const py::array& origins, const OptionalArray& teacher,
         const OptionalArray& answers, const OptionalArray& positive_offsets, const OptionalArray& positive_scores,
         double min_score, double max_score, double margin, double percentage, double teacher_min, double teacher_max,
         double duplicate_tolerance, int64_t keep, bool by_score, const std::string& weighting, double power,
         double temperature, double a, double b, int64_t bins, py::array out_rows, py::array out_scores,
         py::array out_origins, OptionalArray out_log_weights, int threads) {
        check<int32_t>(rows, "rows", {-1, -1});
        const int64_t queries = rows.shape(0), width = rows.shape(1);
        if (positive_offsets.has_value() != positive_scores.has_value()) {
          throw py::value_error("positive_offsets and positive_scores go together");
        }
        if (bins < 1) throw py::value_error("bins must be at least 1");
        SelectArguments args{};
        args.queries = queries;
        args.width = width;
        args.rows = in<int32_t>(rows, "rows", {queries, width});
        args.scores = in<float>(scores, "scores", {queries, width});
        args.origins = in<uint8_t>(origins, "origins", {queries, width});
        args.teacher = in<float>(teacher, "teacher", {queries, width});
        args.answers = in<bool>(answers, "answers", {queries, width});
        args.positive_offsets = in<int64_t>(positive_offsets, "positive_offsets", {queries + 1});
        args.positive_scores = in<float>(positive_scores, "positive_scores", {-1});
        if (positive_scores) {
          check_offsets(args.positive_offsets, queries, positive_scores->shape(0), "positive_offsets");
        }
        args.rule = {min_score, max_score,   margin, percentage,
                     teacher_min, teacher_max, duplicate_tolerance,
                     keep,      by_score,    weighting_of(weighting), power, temperature, a, b, bins};
        args.out_rows = out<int32_t>(out_rows, "out_rows", {queries, width});
        args.out_scores = out<float>(out_scores, "out_scores", {queries, width});
        args.out_origins = out<uint8_t>(out_origins, "out_origins", {queries, width});
        args.out_log_weights = out<float>(out_log_weights, "out_log_weights", {queries, width});
        std::vector<int64_t> counts(kSelectReasons);
        {
          py::gil_scoped_release release;
          select(args, counts.data(), threads);
        }
        return by_name(kSelectNames, counts);
      },
      py::arg("rows"), py::arg("scores"), py::arg("origins"), py::kw_only(), py::arg("teacher"), py::arg("answers"),
      py::arg("positive_offsets"), py::arg("positive_scores"), py::arg("min_score"), py::arg("max_score"),
      py::arg("margin"), py::arg("percentage"), py::arg("teacher_min"), py::arg("teacher_max"),
      py::arg("duplicate_tolerance"), py::arg("keep"), py::arg("by_score"), py::arg("weighting"), py::arg("power"),
      py::arg("temperature"), py::arg("a"), py::arg("b"), py::arg("bins"), py::arg("out_rows"), py::arg("out_scores"),
      py::arg("out_origins"), py::arg("out_log_weights"), py::arg("threads") = 1);

  m.def(
      "draw_negatives",
      [](const py::array& rows, const OptionalArray& log_weights, const py::array& queries,
         const std::pair<py::array, py::array>& positives, int64_t passages, const OptionalArray& documents,
         const OptionalArray& contents, uint64_t seed, uint64_t generation, uint64_t step, py::array drawn,
         int threads) {
        check<int32_t>(rows, "rows", {-1, -1});
        check<int64_t>(drawn, "drawn", {-1, -1});
        const int64_t table = rows.shape(0), width = rows.shape(1), count = drawn.shape(0);
        DrawArguments args{};
        args.rows = in<int32_t>(rows, "rows", {table, width});
        args.log_weights = in<float>(log_weights, "log_weights", {table, width});
        args.width = width;
        args.queries = in<int64_t>(queries, "queries", {count});
        args.count = count;
        args.passages = groups_of(passages, documents, contents);
        args.positives = {in<int64_t>(positives.first, "positive offsets", {table + 1}),
                          in<int64_t>(positives.second, "positive rows", {-1})};
        // Not all of them, as elsewhere: this is called for every batch.
        const int64_t stored = positives.second.shape(0);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t query = args.queries[i];
          if (query < 0 || query >= table) throw py::index_error("a query is outside the table");
          const int64_t begin = args.positives.offsets[query], end = args.positives.offsets[query + 1];
          if (begin < 0 || end < begin || end > stored) throw py::value_error("positive offsets must rise");
          for (int64_t p = begin; p < end; ++p) {
            const int64_t row = args.positives.rows[p];
            if (row < 0 || row >= passages) throw py::value_error("a positive row is outside the passages");
          }
          for (int64_t c = 0; c < width; ++c) {
            if (args.rows[query * width + c] >= passages) throw py::value_error("a candidate is outside the passages");
          }
        }
        args.seed = seed;
        args.generation = generation;
        args.step = step;
        args.wanted = drawn.shape(1);
        args.out = out<int64_t>(drawn, "drawn", {count, args.wanted});
        py::gil_scoped_release release;
        draw(args, threads);
      },
      py::arg("rows"), py::arg("log_weights"), py::arg("queries"), py::arg("positives"), py::kw_only(),
      py::arg("passages"), py::arg("documents"), py::arg("contents"), py::arg("seed"), py::arg("generation"),
      py::arg("step"), py::arg("drawn"), py::arg("threads") = 1);
}

}  // namespace ance_fast
