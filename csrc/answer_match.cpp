#include "answer_match.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "parallel.h"

namespace ance_fast {
namespace {

constexpr uint64_t kHashStart = 14695981039346656037ull;  // FNV-1a, over code points
constexpr uint64_t kHashFactor = 1099511628211ull;

// Calls emit(word in lower case, its hash) for each word of a text.
template <typename Character, typename Emit>
void each_word(const Character* text, int64_t length, const uint32_t* table, std::vector<uint32_t>& word, Emit emit) {
  int64_t i = 0;
  while (i < length) {
    uint32_t entry = table[text[i++]];
    if (entry >> kClassShift == kBlank) continue;
    word.assign(1, entry & kLowerMask);
    uint64_t hash = (kHashStart ^ word[0]) * kHashFactor;
    if (entry >> kClassShift == kInWord) {
      for (; i < length && (entry = table[text[i]]) >> kClassShift == kInWord; ++i) {
        word.push_back(entry & kLowerMask);
        hash = (hash ^ word.back()) * kHashFactor;
      }
    }
    emit(word, hash);
  }
}

template <typename Emit>
void each_word(const TextView& text, const uint32_t* table, std::vector<uint32_t>& word, Emit emit) {
  if (text.width == 1) {
    each_word(static_cast<const uint8_t*>(text.data), text.length, table, word, emit);
  } else if (text.width == 2) {
    each_word(static_cast<const uint16_t*>(text.data), text.length, table, word, emit);
  } else {
    each_word(static_cast<const uint32_t*>(text.data), text.length, table, word, emit);
  }
}

bool holds(const int32_t* text, int64_t length, const int32_t* answer, int64_t words) {
  if (words == 0) return true;
  if (words > length) return false;
  const int32_t* const last = text + length - words + 1;
  for (const int32_t* at = text; (at = std::find(at, last, *answer)) != last; ++at) {
    if (std::equal(answer + 1, answer + words, at + 1)) return true;
  }
  return false;
}

}  // namespace

Vocabulary::Vocabulary(const uint32_t* table) : table_(table, table + kCodePoints), slots_(1024, 0), ends_(1, 0) {}

WordLists Vocabulary::learn(const std::vector<TextView>& texts) {
  WordLists lists;
  lists.offsets.push_back(0);
  std::vector<uint32_t> word;
  for (const TextView& text : texts) {
    each_word(text, table_.data(), word, [&](const std::vector<uint32_t>& letters, uint64_t hash) {
      const int32_t known = find(letters, hash);
      lists.values.push_back(known ? known : add(letters, hash));
    });
    lists.offsets.push_back(static_cast<int64_t>(lists.values.size()));
  }
  return lists;
}

WordLists Vocabulary::look_up(const std::vector<TextView>& texts, int threads) const {
  const int64_t count = static_cast<int64_t>(texts.size());
  int64_t length = 0;
  for (const TextView& text : texts) length += text.length;
  WordLists lists;
  lists.offsets.assign(texts.size() + 1, 0);
  // Each piece of texts has its own list, because where it will lie is known when all are done.
  const int64_t pieces = std::min<int64_t>(std::max(threads, 1), std::max<int64_t>(count, 1));
  std::vector<std::vector<int32_t>> parts(static_cast<size_t>(pieces));
  split(pieces, length, threads, [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> word;
    for (int64_t piece = begin; piece < end; ++piece) {
      std::vector<int32_t>& values = parts[static_cast<size_t>(piece)];
      for (int64_t i = count * piece / pieces; i < count * (piece + 1) / pieces; ++i) {
        each_word(texts[static_cast<size_t>(i)], table_.data(), word,
                  [&](const std::vector<uint32_t>& letters, uint64_t hash) { values.push_back(find(letters, hash)); });
        lists.offsets[static_cast<size_t>(i) + 1] = static_cast<int64_t>(values.size());
      }
    }
  });
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t before = static_cast<int64_t>(lists.values.size());
    for (int64_t i = count * piece / pieces; i < count * (piece + 1) / pieces; ++i) {
      lists.offsets[static_cast<size_t>(i) + 1] += before;
    }
    std::vector<int32_t>& values = parts[static_cast<size_t>(piece)];
    if (piece == 0) {
      lists.values = std::move(values);
    } else {
      lists.values.insert(lists.values.end(), values.begin(), values.end());
      values = {};
    }
  }
  return lists;
}

int32_t Vocabulary::find(const std::vector<uint32_t>& word, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  // The upper half too: FNV's low bits know only the low bits of what it hashed.
  for (size_t slot = (hash ^ hash >> 32) & mask; slots_[slot]; slot = (slot + 1) & mask) {
    const size_t number = static_cast<size_t>(slots_[slot] - 1);
    const int64_t begin = ends_[number], size = ends_[number + 1] - begin;
    if (hashes_[number] == hash && size == static_cast<int64_t>(word.size()) &&
        std::equal(word.begin(), word.end(), letters_.begin() + begin)) {
      return slots_[slot];
    }
  }
  return 0;
}

int32_t Vocabulary::add(const std::vector<uint32_t>& word, uint64_t hash) {
  if (hashes_.size() >= static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw std::length_error("more than 2^31 - 1 distinct words");
  }
  letters_.insert(letters_.end(), word.begin(), word.end());
  ends_.push_back(static_cast<int64_t>(letters_.size()));
  hashes_.push_back(hash);
  const int32_t number = static_cast<int32_t>(hashes_.size());
  if (2 * hashes_.size() > slots_.size()) {
    grow();
  } else {
    const size_t mask = slots_.size() - 1;
    size_t slot = (hash ^ hash >> 32) & mask;
    while (slots_[slot]) slot = (slot + 1) & mask;
    slots_[slot] = number;
  }
  return number;
}

void Vocabulary::grow() {
  slots_.assign(4 * slots_.size(), 0);
  const size_t mask = slots_.size() - 1;
  for (size_t i = 0; i < hashes_.size(); ++i) {
    size_t slot = (hashes_[i] ^ hashes_[i] >> 32) & mask;
    while (slots_[slot]) slot = (slot + 1) & mask;
    slots_[slot] = static_cast<int32_t>(i) + 1;
  }
}

void match_answers(const MatchArguments& args, int threads) {
  // A pair reads a passage of about a hundred words.
  split(args.pairs, 128 * args.pairs, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t* text = args.passage_offsets + args.passages[i];
      const int64_t* query = args.query_offsets + args.queries[i];
      bool found = false;
      for (int64_t a = query[0]; a < query[1] && !found; ++a) {
        const int64_t* answer = args.answer_offsets + a;
        found = holds(args.passage_values + text[0], text[1] - text[0], args.answer_values + answer[0],
                      answer[1] - answer[0]);
      }
      args.found[i] = found;
    }
  });
}

}  // namespace ance_fast
