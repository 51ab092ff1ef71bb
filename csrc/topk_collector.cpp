#include "topk_collector.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "parallel.h"

namespace ance_fast {
namespace {

// Scores looked at before the threshold is taken anew.
constexpr int64_t kChunk = 1024;

#define ANCE_KERNELS "topk_collector.inl"
#include "each_isa.inl"

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// The key that -inf would have: below those of all other scores.
constexpr int64_t kNothing = std::numeric_limits<int64_t>::min();

int64_t key_of(float score, int64_t position) {
  const float positive_zero = score + 0.0f;  // -0 + 0 is +0: equal scores have equal bits
  int32_t bits;
  std::memcpy(&bits, &positive_zero, sizeof bits);
  bits = bits < 0 ? bits ^ 0x7fffffff : bits;
  return bits * TopKCollector::kPositions + (TopKCollector::kPositions - 1 - position);
}

float score_of(int64_t key) {
  int32_t bits = static_cast<int32_t>(key >> 32);
  bits = bits < 0 ? bits ^ 0x7fffffff : bits;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

int64_t position_of(int64_t key) { return TopKCollector::kPositions - 1 - (key & (TopKCollector::kPositions - 1)); }

// The least score that a vector at `first` or later needs for a key above `kth`.
float threshold_of(int64_t kth, int64_t first) {
  if (kth == kNothing) return std::numeric_limits<float>::lowest();
  const float score = score_of(kth);
  return position_of(kth) < first ? std::nextafter(score, kInfinity) : score;
}

bool excluded(const TopKFilter& filter, int64_t query, int64_t position) {
  const int64_t *begin = filter.excluded + filter.offsets[query], *end = filter.excluded + filter.offsets[query + 1];
  return std::binary_search(begin, end, position);
}

}  // namespace

void check_lists(const TopKFilter& filter, int64_t rows, int64_t count) {
  if (!filter.offsets) return;
  bool fit = filter.offsets[0] == 0 && filter.offsets[rows] == count;
  for (int64_t r = 0; r < rows; ++r) fit = fit && filter.offsets[r] <= filter.offsets[r + 1];
  if (!fit) throw std::invalid_argument("offsets of excluded positions must rise from 0 to their number");
}

TopKCollector::TopKCollector(int64_t rows, int64_t k) : k_(k) {
  if (rows < 0 || k < 1) throw std::invalid_argument("a collector needs rows >= 0 and k >= 1");
  rows_.resize(static_cast<size_t>(rows), Row{kNothing, {}});
}

void TopKCollector::add(const ScoreTile& tile, const TopKFilter& filter, Isa isa, int threads) {
  if (tile.row < 0 || tile.row + tile.rows > rows()) throw std::invalid_argument("the tile has queries that are not there");
  if (tile.first < 0 || tile.first + tile.columns > kPositions) {
    throw std::invalid_argument("the tile has positions outside 0 .. 2^32");
  }
  if (filter.allow && tile.first + tile.columns > filter.allow_size) {
    throw std::invalid_argument("the tile goes past the end of allow");
  }
  split(tile.rows, tile.rows * tile.columns, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t query = tile.row + r;
      add_row(rows_[static_cast<size_t>(query)], query, tile.scores + r * tile.columns, tile, filter, isa);
    }
  });
}

void TopKCollector::add_row(Row& row, int64_t query, const float* scores, const ScoreTile& tile,
                            const TopKFilter& filter, Isa isa) {
  int32_t columns[kChunk];
  for (int64_t at = 0; at < tile.columns; at += kChunk) {
    const int64_t count = std::min(kChunk, tile.columns - at);
    const float threshold = threshold_of(row.kth, tile.first + at);
    int64_t reached = 0;
    ANCE_DISPATCH(isa, reaching(scores + at, count, threshold, columns, &reached));
    for (int64_t i = 0; i < reached; ++i) {
      const int64_t position = tile.first + at + columns[i];
      const int64_t key = key_of(scores[at + columns[i]], position);
      if (key <= row.kth) continue;
      if (filter.allow && !filter.allow[position]) continue;
      if (filter.offsets && excluded(filter, query, position)) continue;
      // k + k would overflow for a k that means "all".
      if (static_cast<int64_t>(row.keys.size()) - k_ >= k_) halve(row);
      if (key > row.kth) row.keys.push_back(key);
    }
  }
}

void TopKCollector::halve(Row& row) {
  if (static_cast<int64_t>(row.keys.size()) < k_) return;
  const auto last = row.keys.begin() + (k_ - 1);
  std::nth_element(row.keys.begin(), last, row.keys.end(), std::greater<int64_t>());
  row.kth = *last;
  row.keys.resize(static_cast<size_t>(k_));
}

void TopKCollector::result(float* scores, int64_t* positions, int threads) {
  split(rows(), rows() * k_, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      Row& row = rows_[static_cast<size_t>(r)];
      halve(row);
      std::sort(row.keys.begin(), row.keys.end(), std::greater<int64_t>());
      float* row_scores = scores + r * k_;
      int64_t* row_positions = positions + r * k_;
      const int64_t found = static_cast<int64_t>(row.keys.size());
      for (int64_t i = 0; i < found; ++i) {
        row_scores[i] = score_of(row.keys[static_cast<size_t>(i)]);
        row_positions[i] = position_of(row.keys[static_cast<size_t>(i)]);
      }
      std::fill(row_scores + found, row_scores + k_, -kInfinity);
      std::fill(row_positions + found, row_positions + k_, int64_t{-1});
    }
  });
}

}  // namespace ance_fast
