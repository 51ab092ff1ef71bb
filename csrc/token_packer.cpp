#include "token_packer.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

namespace ance_fast {
namespace {

template <typename Value>
void copy_tokens(const void* values, int64_t begin, int64_t count, int64_t* out) {
  const Value* from = static_cast<const Value*>(values) + begin;
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int64_t>(from[i]);
}

}  // namespace

TokenPacker::TokenPacker(std::vector<TokenShard> shards, int64_t max_length, bool keep_last)
    : shards_(std::move(shards)), shard_start_{0}, max_length_(max_length), keep_last_(keep_last) {
  for (size_t s = 0; s < shards_.size(); ++s) {
    const TokenShard& shard = shards_[s];
    int64_t previous = shard.offset(0);
    bool valid = previous >= 0;
    for (int64_t r = 1; r <= shard.rows; ++r) {
      const int64_t next = shard.offset(r);
      valid = valid && next >= previous;
      previous = next;
    }
    if (!valid || previous > shard.num_values) {
      throw std::invalid_argument("shard " + std::to_string(s) + ": offsets must rise from >= 0 to at most its " +
                                  std::to_string(shard.num_values) + " values");
    }
    shard_start_.push_back(shard_start_.back() + shard.rows);
  }
}

TokenPacker::Row TokenPacker::find(int64_t row) const {
  if (row < 0 || row >= rows()) {
    throw std::out_of_range("row " + std::to_string(row) + " is outside 0 .. " + std::to_string(rows()) + " - 1");
  }
  const auto after = std::upper_bound(shard_start_.begin(), shard_start_.end(), row);
  const size_t s = static_cast<size_t>(after - shard_start_.begin()) - 1;
  const TokenShard& shard = shards_[s];
  const int64_t local = row - shard_start_[s];
  const int64_t begin = shard.offset(local), full = shard.offset(local + 1) - begin;
  return {&shard, begin, full, max_length_ > 0 ? std::min(full, max_length_) : full};
}

void TokenPacker::lengths(const int64_t* rows, int64_t count, int64_t* out) const {
  for (int64_t i = 0; i < count; ++i) out[i] = find(rows[i]).length;
}

PackPlan TokenPacker::plan(const int64_t* rows, int64_t count, int64_t token_budget, int64_t window,
                           int64_t max_sequences) const {
  if (token_budget <= 0) throw std::invalid_argument("token_budget must be positive");
  if (max_sequences <= 0) throw std::invalid_argument("max_sequences must be positive");
  if (window < 0) throw std::invalid_argument("window must not be negative");
  std::vector<int64_t> length(static_cast<size_t>(count));
  lengths(rows, count, length.data());
  PackPlan plan;
  plan.order.resize(static_cast<size_t>(count));
  std::iota(plan.order.begin(), plan.order.end(), int64_t{0});
  if (window > 0) {
    for (int64_t begin = 0; begin < count;) {
      const int64_t end = count - begin > window ? begin + window : count;
      std::stable_sort(plan.order.begin() + begin, plan.order.begin() + end,
                       [&](int64_t a, int64_t b) { return length[a] > length[b]; });
      begin = end;
    }
  }
  plan.batch_offsets.push_back(0);
  int64_t tokens = 0, sequences = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t next = length[plan.order[i]];
    // Compared by subtraction: token_budget may be the largest int64.
    if (sequences > 0 && (sequences == max_sequences || next > token_budget - tokens)) {
      plan.batch_offsets.push_back(i);
      tokens = sequences = 0;
    }
    tokens += next;
    ++sequences;
  }
  if (count > 0) plan.batch_offsets.push_back(count);
  return plan;
}

void TokenPacker::pack(const int64_t* rows, const int64_t* starts, int64_t batches, int64_t position_offset,
                       int64_t capacity, int64_t* ids, int64_t* positions, int32_t* cu_seqlens,
                       int64_t* longest) const {
  for (int64_t b = 0; b < batches; ++b) {
    if (starts[b] > starts[b + 1]) throw std::invalid_argument("starts falls at entry " + std::to_string(b + 1));
  }
  int64_t total = 0;
  for (int64_t b = 0; b < batches; ++b) {
    int64_t tokens = 0;
    longest[b] = 0;
    for (int64_t i = starts[b]; i < starts[b + 1]; ++i) {
      const int64_t length = find(rows[i]).length;
      longest[b] = std::max(longest[b], length);
      tokens += length;
    }
    if (tokens > std::numeric_limits<int32_t>::max()) {
      throw std::invalid_argument("a batch of " + std::to_string(tokens) + " tokens does not fit int32 cu_seqlens");
    }
    total += tokens;
  }
  if (total != capacity) {
    throw std::invalid_argument("the rows hold " + std::to_string(total) + " tokens, but the buffers hold " +
                                std::to_string(capacity));
  }
  for (int64_t b = 0; b < batches; ++b) {
    int64_t at = 0;
    *cu_seqlens++ = 0;
    for (int64_t i = starts[b]; i < starts[b + 1]; ++i) {
      const Row row = find(rows[i]);
      const auto copy = row.shard->wide_values ? copy_tokens<int32_t> : copy_tokens<uint16_t>;
      copy(row.shard->values, row.begin, row.length, ids + at);
      if (keep_last_ && row.length < row.full_length && row.length > 0) {
        copy(row.shard->values, row.begin + row.full_length - 1, 1, ids + at + row.length - 1);
      }
      for (int64_t t = 0; t < row.length; ++t) positions[at + t] = position_offset + t;
      at += row.length;
      *cu_seqlens++ = static_cast<int32_t>(at);
    }
    ids += at;
    positions += at;
  }
}

}  // namespace ance_fast
