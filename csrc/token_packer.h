// Rows of a token store -> packed batches: no padding, a bounded number of tokens, sequences of similar length together.
#pragma once

#include <cstdint>
#include <vector>

namespace ance_fast {

// One shard: row r holds values[offsets[r]] .. values[offsets[r + 1] - 1]. The memory belongs to the caller.
struct TokenShard {
  const void* values;
  bool wide_values;  // int32 if true, else uint16
  int64_t num_values;
  const void* offsets;
  bool wide_offsets;  // int64 if true, else int32
  int64_t rows;

  int64_t offset(int64_t i) const {
    return wide_offsets ? static_cast<const int64_t*>(offsets)[i] : static_cast<const int32_t*>(offsets)[i];
  }
};

struct PackPlan {
  std::vector<int64_t> order;          // [n] positions in the request, batch after batch
  std::vector<int64_t> batch_offsets;  // [m + 1] where each batch starts in `order`
};

// Immutable once built: any number of threads may plan and pack at once.
class TokenPacker {
 public:
  // Checks every offset once, so that no later call can read outside a shard. max_length <= 0: no cut. A longer row
  // keeps its first max_length tokens, or with keep_last its first max_length - 1 and its last (the closing token).
  // Throws std::invalid_argument.
  TokenPacker(std::vector<TokenShard> shards, int64_t max_length, bool keep_last);

  int64_t rows() const { return shard_start_.back(); }

  // Tokens of each row after the cut. rows are numbered over the concatenated shards; std::out_of_range.
  void lengths(const int64_t* rows, int64_t count, int64_t* out) const;

  // Sorts each run of `window` consecutive requests by descending length (stable; 0 keeps the request's order), then
  // cuts greedily into batches of at most token_budget tokens and max_sequences rows. A row longer than the budget
  // is a batch of its own.
  PackPlan plan(const int64_t* rows, int64_t count, int64_t token_budget, int64_t window, int64_t max_sequences) const;

  // Writes the rows one after the other: ids [capacity], positions [capacity] (each row from position_offset). Batch b
  // has rows starts[b] .. starts[b + 1] - 1; cu_seqlens [starts[batches] + batches] holds each batch's own offsets, from
  // 0, and longest [batches] the length of its longest row. Throws std::invalid_argument where capacity is not the rows'
  // total length or starts fall. starts[0] is 0.
  void pack(const int64_t* rows, const int64_t* starts, int64_t batches, int64_t position_offset, int64_t capacity,
            int64_t* ids, int64_t* positions, int32_t* cu_seqlens, int64_t* longest) const;

 private:
  struct Row {
    const TokenShard* shard;
    int64_t begin, full_length, length;
  };
  Row find(int64_t row) const;

  std::vector<TokenShard> shards_;
  std::vector<int64_t> shard_start_;  // [shards + 1] global number of each shard's first row
  int64_t max_length_;
  bool keep_last_;
};

}  // namespace ance_fast
