// Answers of questions in passages: text cut into the words that answers have, and runs of words found in passages.
//
// A word is a run of letters, marks and numbers, or one other sign that is no blank; upper case counts as lower case.
// What is which, and what a character's lower case is, comes in a table with an entry for each code point, so that the
// engine has no Unicode of its own. Texts are read where they lie, with 1, 2 or 4 bytes a code point.
#pragma once

#include <cstdint>
#include <vector>

namespace ance_fast {

constexpr int64_t kCodePoints = 0x110000;
constexpr int kClassShift = 24;
constexpr uint32_t kLowerMask = (1u << kClassShift) - 1;

// Entry of a code point: its class above kClassShift, its lower case below.
enum CharacterClass : uint32_t { kBlank = 0, kInWord = 1, kSign = 2 };

struct TextView {
  const void* data;
  int64_t length;  // code points
  int width;       // bytes of one
};

// Lists of values, one after the other: list i is values[offsets[i] .. offsets[i + 1]).
struct WordLists {
  std::vector<int32_t> values;
  std::vector<int64_t> offsets;
};

// The distinct words of some texts, numbered from 1 in the order they come.
class Vocabulary {
 public:
  explicit Vocabulary(const uint32_t* table);

  // Numbers of each text's words; those not seen before get the next ones.
  WordLists learn(const std::vector<TextView>& texts);
  // Numbers of each text's words, 0 for a word that was not learned. Safe to call from several threads.
  WordLists look_up(const std::vector<TextView>& texts, int threads) const;

  int64_t size() const { return static_cast<int64_t>(hashes_.size()); }

 private:
  int32_t find(const std::vector<uint32_t>& word, uint64_t hash) const;
  int32_t add(const std::vector<uint32_t>& word, uint64_t hash);
  void grow();

  std::vector<uint32_t> table_;
  // Open addressing over a power of two: number of a word, 0 where free. Words lie one after the other.
  std::vector<int32_t> slots_;
  std::vector<uint64_t> hashes_;
  std::vector<uint32_t> letters_;
  std::vector<int64_t> ends_;
};

struct MatchArguments {
  const int32_t* passage_values;
  const int64_t* passage_offsets;
  const int32_t* answer_values;
  const int64_t* answer_offsets;
  const int64_t* query_offsets;  // of each query's answers
  const int64_t* queries;        // of each pair
  const int64_t* passages;       // of each pair
  int64_t pairs;
  bool* found;
};

// Which pairs' passages hold the words of one of the query's answers in a row. An answer without words is in all.
void match_answers(const MatchArguments& args, int threads);

}  // namespace ance_fast
