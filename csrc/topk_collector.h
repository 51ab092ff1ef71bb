// The k best scores of each query, collected from tiles of scores in any order.
//
// A row of scores is compared with the query's k-th best so far, the threshold, in vectors; what reaches it, about
// k ln(N / k) of N scores in random order, is looked at one by one: may it be returned, does it beat the k-th also by
// position. It joins a buffer of 2 k; when that is full, the better half is selected and the threshold rises. So the
// work is linear in N whatever the order, filters cost nothing for the scores that they do not meet, and nothing
// depends on the threads: the rows are independent.
//
// A candidate is one integer, its key: the score's bits, changed so that they order as integers, above
// 2^32 - 1 - position. Keys are never equal, so order and selection are by (-score, position) throughout.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu_features.h"

namespace ance_fast {

// Which positions may be returned.
struct TopKFilter {
  const bool* allow;       // [allow_size], or null: all
  int64_t allow_size;
  const int64_t* offsets;   // [rows + 1] into excluded, or null: nothing is
  const int64_t* excluded;  // positions not returned, ascending within a row
};

// Throws std::invalid_argument unless the offsets of `rows` lists rise from 0 to `count`, or there are none.
void check_lists(const TopKFilter& filter, int64_t rows, int64_t count);

// A tile of scores: queries row .. row + rows against vectors first .. first + columns.
struct ScoreTile {
  const float* scores;  // [rows, columns]
  int64_t row, rows, first, columns;
};

class TopKCollector {
 public:
  static constexpr int64_t kPositions = int64_t{1} << 32;  // positions lie below

  // Throws std::invalid_argument for rows < 0 or k < 1.
  TopKCollector(int64_t rows, int64_t k);

  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  int64_t k() const { return k_; }

  // Throws std::invalid_argument for a tile outside the queries, the positions or the filter. NaN and -inf are never
  // collected.
  void add(const ScoreTile& tile, const TopKFilter& filter, Isa isa, int threads);

  // Scores descending [rows, k] and positions [rows, k]; -inf and -1 past the end. More tiles may follow.
  void result(float* scores, int64_t* positions, int threads);

 private:
  struct Row {
    int64_t kth;  // key of the k-th best when the buffer was last halved: what is not above it is not wanted
    std::vector<int64_t> keys;
  };

  void add_row(Row& row, int64_t query, const float* scores, const ScoreTile& tile, const TopKFilter& filter, Isa isa);
  void halve(Row& row);

  int64_t k_;
  std::vector<Row> rows_;
};

}  // namespace ance_fast
