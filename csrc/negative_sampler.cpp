#include "negative_sampler.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "parallel.h"

namespace ance_fast {
namespace {

constexpr float kNoScore = -std::numeric_limits<float>::infinity();
constexpr int64_t kAttempts = 64;
// Numbers drawn per source lie apart from those of a step's draws.
constexpr uint64_t kSourceStep = ~uint64_t{0};

// SplitMix64 (Steele et al., OOPSLA 2014), absorbing one number after the other; counter_hash.py is the same.
class CounterHash {
 public:
  CounterHash with(uint64_t part) const {
    CounterHash next;
    uint64_t state = (state_ ^ part) + kIncrement;
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9u;
    state = (state ^ (state >> 27)) * 0x94D049BB133111EBu;
    next.state_ = state ^ (state >> 31);
    return next;
  }
  uint64_t value() const { return state_; }

 private:
  static constexpr uint64_t kIncrement = 0x9E3779B97F4A7C15u;
  uint64_t state_ = kIncrement;
};

// Values seen for one query; cleared by a new stamp, so that a query costs what it holds and not the table's size.
class SeenSet {
 public:
  explicit SeenSet(int64_t most) {
    size_t size = 16;
    while (size < static_cast<size_t>(most) * 2) size *= 2;
    slots_.resize(size);
  }
  void clear() { ++stamp_; }
  // The place `value` was first added with, or -1 if this call added it.
  int64_t place_or_add(int64_t value, int64_t place) {
    size_t slot = CounterHash().with(static_cast<uint64_t>(value)).value() & (slots_.size() - 1);
    for (; slots_[slot].stamp == stamp_; slot = (slot + 1) & (slots_.size() - 1)) {
      if (slots_[slot].value == value) return slots_[slot].place;
    }
    slots_[slot] = {value, place, stamp_};
    return -1;
  }

 private:
  struct Slot {
    int64_t value = 0, place = 0, stamp = 0;
  };
  std::vector<Slot> slots_;
  int64_t stamp_ = 0;
};

// A query's positives and what they belong to.
class Forbidden {
 public:
  Forbidden(const PositiveLists& positives, const PassageGroups& passages)
      : positives_(positives), passages_(passages) {}

  void of(int64_t query) {
    begin_ = positives_.rows + positives_.offsets[query];
    end_ = positives_.rows + positives_.offsets[query + 1];
    gather(passages_.documents, documents_);
    gather(passages_.contents, contents_);
  }
  bool positive(int64_t row) const { return std::binary_search(begin_, end_, row); }
  bool same_document(int64_t row) const { return holds(passages_.documents, documents_, row); }
  bool same_content(int64_t row) const { return holds(passages_.contents, contents_, row); }
  bool any(int64_t row) const { return positive(row) || same_document(row) || same_content(row); }

 private:
  void gather(const int64_t* groups, std::vector<int64_t>& out) const {
    out.clear();
    if (!groups) return;
    for (const int64_t* row = begin_; row != end_; ++row) out.push_back(groups[*row]);
    std::sort(out.begin(), out.end());
  }
  static bool holds(const int64_t* groups, const std::vector<int64_t>& some, int64_t row) {
    return groups && std::binary_search(some.begin(), some.end(), groups[row]);
  }

  PositiveLists positives_;
  PassageGroups passages_;
  const int64_t *begin_ = nullptr, *end_ = nullptr;
  std::vector<int64_t> documents_, contents_;
};

template <int kReasons>
using Counts = std::array<int64_t, kReasons>;

// Adds up over threads: sums of integers do not depend on the order.
template <int kReasons>
void add_counts(const Counts<kReasons>& mine, std::vector<std::atomic<int64_t>>& all) {
  for (int i = 0; i < kReasons; ++i) all[i] += mine[i];
}

template <int kReasons, typename Work>
void split_counting(int64_t queries, int64_t elements, int threads, int64_t* counts, const Work& work) {
  std::vector<std::atomic<int64_t>> all(kReasons);
  split(queries, elements, threads, [&](int64_t begin, int64_t end) {
    Counts<kReasons> mine{};
    work(begin, end, mine);
    add_counts<kReasons>(mine, all);
  });
  for (int i = 0; i < kReasons; ++i) counts[i] += all[i];
}

class Uniter {
 public:
  explicit Uniter(const UniteArguments& args)
      : args_(args), forbidden_(args.positives, args.passages), rows_(args.width), contents_(args.width) {
    usable_.resize(args.sources.size());
  }

  void query(int64_t query, Counts<kUniteReasons>& counts) {
    forbidden_.of(query);
    int64_t deepest = 0;
    for (size_t s = 0; s < args_.sources.size(); ++s) {
      usable(query, s, counts);
      if (args_.per_source > 0) sample(query, s, counts);
      if (!usable_[s].empty()) deepest = std::max(deepest, usable_[s].back() + 1);
    }
    merge(query, deepest, counts);
  }

 private:
  int64_t row_at(int64_t query, size_t s, int64_t rank) const {
    return args_.sources[s].rows[query * args_.sources[s].width + rank];
  }

  // Ranks of a source that may be negatives of the query.
  void usable(int64_t query, size_t s, Counts<kUniteReasons>& counts) {
    usable_[s].clear();
    for (int64_t rank = 0; rank < args_.sources[s].width; ++rank) {
      const int64_t row = row_at(query, s, rank);
      if (row < 0) continue;
      if (row >= args_.passages.passages) {
        throw std::invalid_argument("source " + std::to_string(s) + ", query " + std::to_string(query) + ", rank " +
                                    std::to_string(rank) + ": row " + std::to_string(row) + " of " +
                                    std::to_string(args_.passages.passages) + " passages");
      }
      if (rank < args_.rank_min || rank >= args_.rank_max) {
        ++counts[static_cast<int>(UniteReason::kWindow)];
      } else if (forbidden_.positive(row)) {
        ++counts[static_cast<int>(UniteReason::kPositive)];
      } else if (forbidden_.same_document(row)) {
        ++counts[static_cast<int>(UniteReason::kDocument)];
      } else if (forbidden_.same_content(row)) {
        ++counts[static_cast<int>(UniteReason::kContent)];
      } else {
        usable_[s].push_back(rank);
      }
    }
  }

  // Leaves the `per_source` ranks with the smallest hashes, in order.
  void sample(int64_t query, size_t s, Counts<kUniteReasons>& counts) {
    const int64_t surplus = static_cast<int64_t>(usable_[s].size()) - args_.per_source;
    if (surplus <= 0) return;
    const CounterHash hash = CounterHash()
                                 .with(args_.seed)
                                 .with(args_.generation)
                                 .with(static_cast<uint64_t>(args_.query_ids[query]))
                                 .with(kSourceStep)
                                 .with(static_cast<uint64_t>(s));
    keyed_.clear();
    for (const int64_t rank : usable_[s]) keyed_.emplace_back(hash.with(static_cast<uint64_t>(rank)).value(), rank);
    std::nth_element(keyed_.begin(), keyed_.begin() + args_.per_source, keyed_.end());
    usable_[s].clear();
    for (int64_t i = 0; i < args_.per_source; ++i) usable_[s].push_back(keyed_[i].second);
    std::sort(usable_[s].begin(), usable_[s].end());
    counts[static_cast<int>(UniteReason::kUnsampled)] += surplus;
  }

  void merge(int64_t query, int64_t deepest, Counts<kUniteReasons>& counts) {
    rows_.clear();
    contents_.clear();
    next_.assign(args_.sources.size(), 0);
    int32_t* out = args_.rows + query * args_.width;
    float* scores = args_.scores + query * args_.width;
    uint8_t* origins = args_.origins + query * args_.width;
    std::fill(out, out + args_.width, -1);
    std::fill(scores, scores + args_.width, kNoScore);
    std::fill(origins, origins + args_.width, uint8_t{0});
    int64_t count = 0;
    for (int64_t rank = 0; rank < deepest; ++rank) {
      for (size_t s = 0; s < args_.sources.size(); ++s) {
        if (next_[s] == usable_[s].size() || usable_[s][next_[s]] != rank) continue;
        ++next_[s];
        const int64_t row = row_at(query, s, rank);
        const int64_t place = rows_.place_or_add(row, count);
        // A place that another passage holds, or none, is that of a passage left out for its content.
        const bool repeated = place >= 0 && out[place] == row;
        if (repeated) {
          origins[place] |= static_cast<uint8_t>(1u << s);
          ++counts[static_cast<int>(UniteReason::kRepeated)];
        } else if (place >= 0 ||
                   (args_.passages.contents && contents_.place_or_add(args_.passages.contents[row], count) >= 0)) {
          ++counts[static_cast<int>(UniteReason::kContent)];
        } else {
          out[count] = static_cast<int32_t>(row);
          scores[count] = args_.sources[s].scores[query * args_.sources[s].width + rank];
          origins[count] = static_cast<uint8_t>(1u << s);
          ++count;
        }
      }
    }
  }

  const UniteArguments& args_;
  Forbidden forbidden_;
  SeenSet rows_, contents_;
  std::vector<std::vector<int64_t>> usable_;
  std::vector<size_t> next_;
  std::vector<std::pair<uint64_t, int64_t>> keyed_;
};

class Selector {
 public:
  explicit Selector(const SelectArguments& args) : args_(args), rule_(args.rule) {}

  void query(int64_t query, Counts<kSelectReasons>& counts) {
    first_ = query * args_.width;
    positives_of(query);
    kept_.clear();
    for (int64_t at = first_; at < first_ + args_.width; ++at) {
      if (args_.rows[at] < 0) continue;
      const int reason = reason_against(at);
      if (reason < 0) {
        kept_.push_back(at);
      } else {
        ++counts[reason];
      }
    }
    if (rule_.by_score) order_by_score(counts);
    if (rule_.keep > 0 && static_cast<int64_t>(kept_.size()) > rule_.keep) {
      counts[static_cast<int>(SelectReason::kBeyond)] += static_cast<int64_t>(kept_.size()) - rule_.keep;
      kept_.resize(static_cast<size_t>(rule_.keep));
    }
    write();
  }

 private:
  // The lowest-scored positive is what candidates are measured against: below it they are below all.
  void positives_of(int64_t query) {
    positives_begin_ = positives_end_ = nullptr;
    positive_ = std::numeric_limits<double>::infinity();
    if (!args_.positive_scores) return;
    positives_begin_ = args_.positive_scores + args_.positive_offsets[query];
    positives_end_ = args_.positive_scores + args_.positive_offsets[query + 1];
    for (const float* score = positives_begin_; score != positives_end_; ++score) {
      positive_ = std::min<double>(positive_, *score);
    }
  }

  // Comparisons with NaN, a threshold that is off, are false.
  int reason_against(int64_t at) const {
    if (args_.answers && args_.answers[at]) return static_cast<int>(SelectReason::kAnswer);
    if (rule_.by_score) {
      const double score = args_.scores[at];
      if (!std::isfinite(score)) return static_cast<int>(SelectReason::kUnscored);
      if (score < rule_.min_score) return static_cast<int>(SelectReason::kLow);
      if (score > rule_.max_score) return static_cast<int>(SelectReason::kHigh);
      if (score > positive_ - rule_.margin) return static_cast<int>(SelectReason::kMargin);
      // By the size of the positive score, so that a negative one moves the bound down as well.
      if (score > positive_ - std::fabs(positive_) * (1.0 - rule_.percentage)) {
        return static_cast<int>(SelectReason::kPercentage);
      }
    }
    if (args_.teacher) {
      const double teacher = args_.teacher[at];
      if (std::isnan(teacher) || teacher < rule_.teacher_min || teacher > rule_.teacher_max) {
        return static_cast<int>(SelectReason::kTeacher);
      }
    }
    if (near_positive(at)) return static_cast<int>(SelectReason::kNearDuplicate);
    return -1;
  }

  bool near_positive(int64_t at) const {
    const double score = args_.scores[at];
    return std::any_of(positives_begin_, positives_end_, [&](float positive) {
      return std::fabs(score - static_cast<double>(positive)) <= rule_.duplicate_tolerance;
    });
  }

  void order_by_score(Counts<kSelectReasons>& counts) {
    const auto better = [&](int64_t a, int64_t b) { return args_.scores[a] > args_.scores[b]; };
    if (!std::is_sorted(kept_.begin(), kept_.end(), better)) std::stable_sort(kept_.begin(), kept_.end(), better);
    if (std::isnan(rule_.duplicate_tolerance) || kept_.empty()) return;
    size_t count = 1;
    for (size_t i = 1; i < kept_.size(); ++i) {
      const double above = args_.scores[kept_[count - 1]], score = args_.scores[kept_[i]];
      if (above - score > rule_.duplicate_tolerance) kept_[count++] = kept_[i];
    }
    counts[static_cast<int>(SelectReason::kNearDuplicate)] += static_cast<int64_t>(kept_.size() - count);
    kept_.resize(count);
  }

  void write() {
    const int64_t count = static_cast<int64_t>(kept_.size());
    for (int64_t i = 0; i < args_.width; ++i) {
      args_.out_rows[first_ + i] = i < count ? args_.rows[kept_[i]] : -1;
      args_.out_scores[first_ + i] = i < count ? args_.scores[kept_[i]] : kNoScore;
      if (args_.out_origins) args_.out_origins[first_ + i] = i < count ? args_.origins[kept_[i]] : 0;
    }
    if (!args_.out_log_weights) return;
    weigh();
    const double top = count ? *std::max_element(weights_.begin(), weights_.end()) : 0.0;
    for (int64_t i = 0; i < args_.width; ++i) {
      args_.out_log_weights[first_ + i] = i < count ? static_cast<float>(weights_[i] - top) : kNoScore;
    }
  }

  void weigh() {
    weights_.assign(kept_.size(), 0.0);
    if (rule_.weighting == Weighting::kMarginBins) return weigh_bins();
    for (size_t i = 0; i < kept_.size(); ++i) {
      const double score = args_.scores[kept_[i]], place = static_cast<double>(i);
      const double off = score - positive_ - rule_.b;
      switch (rule_.weighting) {
        // The noise of a draw spans less than 64, so this order is always kept.
        case Weighting::kTop: weights_[i] = -64.0 * place; break;
        case Weighting::kRankPower: weights_[i] = -rule_.power * std::log(1.0 + place); break;
        case Weighting::kSoftmax: weights_[i] = score / rule_.temperature; break;
        case Weighting::kSimans: weights_[i] = -rule_.a * off * off; break;
        default: break;
      }
    }
  }

  // Bins of equal width between the query's smallest and largest margin; each filled bin weighs the same.
  void weigh_bins() {
    if (kept_.empty()) return;
    const double high = args_.scores[kept_.front()], low = args_.scores[kept_.back()];
    std::vector<int64_t> members(static_cast<size_t>(rule_.bins), 0), bin(kept_.size());
    for (size_t i = 0; i < kept_.size(); ++i) {
      const double part = high > low ? (high - args_.scores[kept_[i]]) / (high - low) : 0.0;
      bin[i] = std::min<int64_t>(static_cast<int64_t>(part * static_cast<double>(rule_.bins)), rule_.bins - 1);
      ++members[static_cast<size_t>(bin[i])];
    }
    for (size_t i = 0; i < kept_.size(); ++i) {
      weights_[i] = -std::log(static_cast<double>(members[static_cast<size_t>(bin[i])]));
    }
  }

  const SelectArguments& args_;
  const SelectRule& rule_;
  int64_t first_ = 0;
  double positive_ = 0;
  const float *positives_begin_ = nullptr, *positives_end_ = nullptr;
  std::vector<int64_t> kept_;
  std::vector<double> weights_;
};

class Drawer {
 public:
  explicit Drawer(const DrawArguments& args) : args_(args), forbidden_(args.positives, args.passages) {}

  void query(int64_t i) {
    const int64_t query = args_.queries[i];
    forbidden_.of(query);
    const CounterHash hash = CounterHash()
                                 .with(args_.seed)
                                 .with(args_.generation)
                                 .with(static_cast<uint64_t>(query))
                                 .with(args_.step);
    if (args_.log_weights) {
      from_candidates<double>(query, hash, [&](uint64_t number, int64_t at) {
        // The logarithm of an exponential variable over the weight: weights may span any range. It rises with the
        // hash, so equal weights draw what no weights draw.
        const double u = (static_cast<double>(number >> 11) + 0.5) * 0x1p-53;
        return std::log(-std::log1p(-u)) - static_cast<double>(args_.log_weights[at]);
      });
    } else {
      from_candidates<uint64_t>(query, hash, [](uint64_t number, int64_t) { return number; });
    }
    int64_t* out = args_.out + i * args_.wanted;
    for (int64_t slot = 0; slot < args_.wanted; ++slot) {
      if (slot < static_cast<int64_t>(taken_.size())) {
        out[slot] = taken_[static_cast<size_t>(slot)];
      } else {
        out[slot] = from_corpus(hash, slot);
        taken_.push_back(out[slot]);
      }
    }
  }

 private:
  // Distinct candidates with the smallest (key, column), into taken_.
  template <typename Key, typename KeyOf>
  void from_candidates(int64_t query, CounterHash hash, const KeyOf& key_of) {
    std::vector<std::pair<Key, int64_t>> best;
    best.reserve(static_cast<size_t>(std::min(args_.wanted, args_.width)) + 1);
    for (int64_t column = 0; column < args_.width; ++column) {
      const int64_t at = query * args_.width + column, row = args_.rows[at];
      if (row < 0 || (args_.log_weights && !(args_.log_weights[at] > kNoScore))) continue;
      const Key key = key_of(hash.with(static_cast<uint64_t>(column)).value(), at);
      const bool full = static_cast<int64_t>(best.size()) == args_.wanted;
      if (full && !(key < best.back().first)) continue;
      if (forbidden_.any(row)) continue;
      const auto same = std::find_if(best.begin(), best.end(), [&](const auto& one) { return one.second == row; });
      if (same != best.end()) {
        if (!(key < same->first)) continue;
        best.erase(same);
      } else if (full) {
        best.pop_back();
      }
      const auto place = std::upper_bound(best.begin(), best.end(), key,
                                          [](Key value, const auto& one) { return value < one.first; });
      best.insert(place, {key, row});
    }
    taken_.clear();
    for (const auto& one : best) taken_.push_back(one.second);
  }

  int64_t from_corpus(CounterHash hash, int64_t slot) const {
    const auto usable = [&](int64_t row) {
      return std::find(taken_.begin(), taken_.end(), row) == taken_.end() && !forbidden_.any(row);
    };
    const uint64_t passages = static_cast<uint64_t>(args_.passages.passages);
    for (int64_t attempt = 0; attempt < kAttempts && passages; ++attempt) {
      const uint64_t counter = static_cast<uint64_t>(1000003 * (slot + 1) + attempt);
      const int64_t row = static_cast<int64_t>(hash.with(counter).value() % passages);
      if (usable(row)) return row;
    }
    // Rejection hardly ever fails; when nearly every passage is taken, look at all of them.
    for (int64_t row = 0; row < args_.passages.passages; ++row) {
      if (usable(row)) return row;
    }
    return -1;
  }

  const DrawArguments& args_;
  Forbidden forbidden_;
  std::vector<int64_t> taken_;
};

}  // namespace

void unite(const UniteArguments& args, int64_t* counts, int threads) {
  if (args.sources.empty() || args.sources.size() > 8) throw std::invalid_argument("between 1 and 8 sources");
  split_counting<kUniteReasons>(args.queries, args.queries * args.width, threads, counts,
                                [&](int64_t begin, int64_t end, Counts<kUniteReasons>& mine) {
                                  Uniter uniter(args);
                                  for (int64_t query = begin; query < end; ++query) uniter.query(query, mine);
                                });
}

void select(const SelectArguments& args, int64_t* counts, int threads) {
  split_counting<kSelectReasons>(args.queries, args.queries * args.width, threads, counts,
                                 [&](int64_t begin, int64_t end, Counts<kSelectReasons>& mine) {
                                   Selector selector(args);
                                   for (int64_t query = begin; query < end; ++query) selector.query(query, mine);
                                 });
}

void draw(const DrawArguments& args, int threads) {
  split(args.count, args.count * std::max<int64_t>(args.width, 1), threads, [&](int64_t begin, int64_t end) {
    Drawer drawer(args);
    for (int64_t i = begin; i < end; ++i) drawer.query(i);
  });
}

}  // namespace ance_fast
