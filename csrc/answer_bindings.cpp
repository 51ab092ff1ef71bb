// Python bindings of the answer matcher.
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "answer_match.h"
#include "array_arguments.h"
#include "bindings.h"

namespace ance_fast {
namespace {

// Views of strings that stay alive and as they are while the GIL is released: a tuple holds them.
std::vector<TextView> views_of(const py::tuple& texts) {
  std::vector<TextView> views;
  views.reserve(texts.size());
  for (const py::handle& text : texts) {
    if (!PyUnicode_Check(text.ptr())) {
      const py::str type = py::type::handle_of(text).attr("__name__");
      throw py::type_error("texts must be str, got " + type.cast<std::string>());
    }
    if (PyUnicode_READY(text.ptr()) != 0) throw py::error_already_set();
    views.push_back({PyUnicode_DATA(text.ptr()), static_cast<int64_t>(PyUnicode_GET_LENGTH(text.ptr())),
                     static_cast<int>(PyUnicode_KIND(text.ptr()))});
  }
  return views;
}

template <typename T>
py::array_t<T> array_of(const std::vector<T>& values) {
  py::array_t<T> array(static_cast<py::ssize_t>(values.size()));
  if (!values.empty()) std::memcpy(array.mutable_data(), values.data(), values.size() * sizeof(T));
  return array;
}

std::pair<py::array, py::array> arrays_of(const WordLists& lists) {
  return {array_of(lists.values), array_of(lists.offsets)};
}

// Offsets int64 [lists + 1] over `values` values, rising.
const int64_t* offsets_of(const py::array& array, int64_t values, const char* name) {
  const int64_t* offsets = in<int64_t>(array, name, {-1});
  bool rising = array.shape(0) > 0 && offsets[0] == 0 && offsets[array.shape(0) - 1] == values;
  for (py::ssize_t i = 1; i < array.shape(0) && rising; ++i) rising = offsets[i - 1] <= offsets[i];
  if (!rising) throw py::value_error(std::string(name) + " must rise from 0 to the number of values");
  return offsets;
}

void check_range(const int64_t* values, int64_t count, int64_t limit, const char* name) {
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >= limit) throw py::index_error(std::string(name) + " are out of range");
  }
}

}  // namespace

void bind_answers(py::module_& m) {
  py::class_<Vocabulary>(m, "Vocabulary")
      .def(py::init([](const py::array& table) {
             const uint32_t* entries = in<uint32_t>(table, "table", {kCodePoints});
             for (int64_t i = 0; i < kCodePoints; ++i) {
               if ((entries[i] & kLowerMask) >= kCodePoints) throw py::value_error("table: no code point");
             }
             return std::make_unique<Vocabulary>(entries);
           }),
           py::arg("table"))
      .def(
          "learn", [](Vocabulary& self, const py::tuple& texts) { return arrays_of(self.learn(views_of(texts))); },
          py::arg("texts"))
      .def(
          "look_up",
          [](const Vocabulary& self, const py::tuple& texts, int threads) {
            const std::vector<TextView> views = views_of(texts);
            WordLists lists;
            {
              py::gil_scoped_release release;
              lists = self.look_up(views, threads);
            }
            return arrays_of(lists);
          },
          py::arg("texts"), py::kw_only(), py::arg("threads") = 1)
      .def("__len__", &Vocabulary::size);

  m.def(
      "match_answers",
      [](const std::pair<py::array, py::array>& passages, const std::pair<py::array, py::array>& answers,
         const py::array& query_offsets, const py::array& queries, const py::array& rows, py::array found,
         int threads) {
        MatchArguments args{};
        args.passage_values = in<int32_t>(passages.first, "passage words", {-1});
        args.passage_offsets = offsets_of(passages.second, passages.first.shape(0), "passage offsets");
        args.answer_values = in<int32_t>(answers.first, "answer words", {-1});
        args.answer_offsets = offsets_of(answers.second, answers.first.shape(0), "answer offsets");
        args.query_offsets = offsets_of(query_offsets, answers.second.shape(0) - 1, "query offsets");
        check<int64_t>(queries, "queries", {-1});
        args.pairs = queries.shape(0);
        args.queries = in<int64_t>(queries, "queries", {args.pairs});
        args.passages = in<int64_t>(rows, "rows", {args.pairs});
        args.found = out<bool>(found, "found", {args.pairs});
        check_range(args.queries, args.pairs, query_offsets.shape(0) - 1, "queries");
        check_range(args.passages, args.pairs, passages.second.shape(0) - 1, "rows");
        py::gil_scoped_release release;
        match_answers(args, threads);
      },
      py::arg("passages"), py::arg("answers"), py::arg("query_offsets"), py::arg("queries"), py::arg("rows"),
      py::arg("found"), py::kw_only(), py::arg("threads") = 1);
}

}  // namespace ance_fast
