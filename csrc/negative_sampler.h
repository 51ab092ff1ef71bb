// Candidate negatives of many queries: united from several ranked lists, filtered and weighted, drawn from.
//
// The queries are independent, and everything random is a hash of (seed, generation, query, ...), so nothing depends on
// the number of threads, on which queries are asked for together, or on what was drawn before.
#pragma once

#include <cstdint>
#include <vector>

namespace ance_fast {

// Known positives of each query as CSR; rows ascend within a query.
struct PositiveLists {
  const int64_t* offsets;  // [queries + 1]
  const int64_t* rows;
};

// What passages have in common: equal entries are chunks of one document, or the same text. Null: not known.
struct PassageGroups {
  int64_t passages;
  const int64_t* documents;  // [passages]
  const int64_t* contents;   // [passages]
};

// One source's list for each query, best first, -1 past the end.
struct CandidateList {
  const int32_t* rows;   // [queries, width]
  const float* scores;   // [queries, width]
  int64_t width;
};

// Why a candidate was left out by `unite`, in the order of the checks; kUniteReasons entries.
enum class UniteReason { kWindow, kPositive, kDocument, kContent, kUnsampled, kRepeated };
constexpr int kUniteReasons = 6;

struct UniteArguments {
  std::vector<CandidateList> sources;  // at most 8
  int64_t queries;
  const int64_t* query_ids;  // [queries], what hashes are taken of
  PositiveLists positives;
  PassageGroups passages;
  int64_t rank_min, rank_max;  // ranks kept in each source, [rank_min, rank_max)
  int64_t per_source;          // candidates drawn from each source; 0: all
  uint64_t seed, generation;
  int64_t width;     // of the result: the widths of the sources together
  int32_t* rows;     // [queries, width], -1 past the end
  float* scores;     // [queries, width], -inf past the end
  uint8_t* origins;  // [queries, width], bit s: source s had it
};

// Merges the sources' lists by (rank, source); the first appearance of a passage gives the score. Adds to
// counts[UniteReason]. Throws std::invalid_argument for a row outside the passages, naming its place.
void unite(const UniteArguments& args, int64_t* counts, int threads);

enum class SelectReason { kAnswer, kUnscored, kLow, kHigh, kMargin, kPercentage, kTeacher, kNearDuplicate, kBeyond };
constexpr int kSelectReasons = 9;

enum class Weighting { kUniform, kTop, kRankPower, kSoftmax, kSimans, kMarginBins };

// NaN switches a threshold off.
struct SelectRule {
  double min_score, max_score, margin, percentage, teacher_min, teacher_max, duplicate_tolerance;
  int64_t keep;    // candidates left of each query; 0: all
  bool by_score;   // scores are read: candidates without one go, the rest is ordered by (-score, place)
  Weighting weighting;
  double power, temperature, a, b;
  int64_t bins;
};

struct SelectArguments {
  int64_t queries, width;
  const int32_t* rows;      // [queries, width]
  const float* scores;      // [queries, width]
  const uint8_t* origins;   // [queries, width], or null
  const float* teacher;     // [queries, width], or null
  const bool* answers;      // [queries, width], true where a passage answers the query; or null
  const int64_t* positive_offsets;  // [queries + 1], or null
  const float* positive_scores;
  SelectRule rule;
  int32_t* out_rows;       // the rest as their inputs
  float* out_scores;
  uint8_t* out_origins;    // or null
  float* out_log_weights;  // or null: uniform
};

// Filters, orders and weights. Log-weights are relative to the largest of the query. Adds to counts[SelectReason].
void select(const SelectArguments& args, int64_t* counts, int threads);

struct DrawArguments {
  const int32_t* rows;         // [table, width], -1 where there is none
  const float* log_weights;    // [table, width], or null: uniform
  int64_t width;
  const int64_t* queries;      // [count], rows of the table
  int64_t count;
  PositiveLists positives;
  PassageGroups passages;
  uint64_t seed, generation, step;
  int64_t wanted;
  int64_t* out;  // [count, wanted]
};

// Draws `wanted` distinct candidates without replacement, those with the smallest exponential keys (Efraimidis and
// Spirakis 2006); where a query has fewer, uniformly from all passages outside its positives' documents and contents,
// and -1 when none is left. No positive is drawn, even if it is a candidate.
void draw(const DrawArguments& args, int threads);

}  // namespace ance_fast
