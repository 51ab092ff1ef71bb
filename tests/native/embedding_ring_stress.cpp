// Producers and consumers with random delays, failures and closings, for the sanitizers. Prints what went wrong and
// ends with status 1; a hang is ended by an alarm.
//
//     embedding_ring_stress [rounds] [seed]
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <thread>

#include "embedding_ring.h"

using namespace ance_fast;
using namespace std::chrono_literals;

namespace {

constexpr int64_t kStride = 1000000;  // a tag is its producer's number times this, plus a counter
using Clock = std::chrono::steady_clock;
constexpr auto kLongWait = 10s;
std::atomic<int> problems{0};

void expect(bool truth, const char* what) {
  if (truth) return;
  if (problems++ < 10) std::fprintf(stderr, "violated: %s\n", what);
}

void dawdle(std::mt19937_64& random) {
  const uint64_t draw = random() % 16;
  if (draw < 8) return;
  if (draw < 14) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
  }
}

// Half of the waits are too long to end by themselves, so that a lost wake-up shows.
std::chrono::nanoseconds any_wait(std::mt19937_64& random) {
  return random() % 2 == 0 ? std::chrono::nanoseconds(kLongWait) : std::chrono::microseconds(random() % 300);
}

struct Round {
  EmbeddingRing ring;
  int64_t producers, each;
  bool fails;  // somebody will fail or be late, so that not everything arrives
  std::atomic<int64_t> filled{0};
};

// What a wake-up was for may be found when the wait runs out, so the time tells, not the result.
void lost(Round& round, const char* what) {
  expect(false, what);
  round.ring.fail();
}

void produce(Round& round, int64_t number, int64_t fail_at, uint64_t seed) {
  std::mt19937_64 random(seed);
  const RingShape& shape = round.ring.shape();
  for (int64_t i = 0; i < round.each;) {
    if (i == fail_at) return round.ring.fail();
    int64_t slot = -1;
    const auto begin = Clock::now();
    const RingResult got = round.ring.acquire(any_wait(random), &slot);
    if (Clock::now() - begin >= kLongWait) return lost(round, "a waiting producer is woken");
    if (got == RingResult::kTimeout) continue;
    if (got != RingResult::kDone) return expect(round.fails, "a producer is turned away without a failure");
    dawdle(random);
    if (random() % 8 == 0) {
      round.ring.abandon(slot);
      continue;
    }
    const int64_t rows = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(shape.rows));
    auto* values = static_cast<float*>(round.ring.data(slot));
    for (int64_t k = 0; k < rows * shape.dim; ++k) values[k] = static_cast<float>(number * round.each + i);
    if (round.ring.publish(slot, rows, number * kStride + i) == RingResult::kFailed) {
      return expect(round.fails, "publishing fails without a failure");
    }
    ++i;
    ++round.filled;
  }
}

// Several threads may share a number; then each of them sees a rising subsequence.
void consume(Round& round, int64_t number, int64_t fail_at, uint64_t seed, std::atomic<int64_t>& seen) {
  std::mt19937_64 random(seed);
  const RingShape& shape = round.ring.shape();
  std::vector<int64_t> next(static_cast<size_t>(round.producers), 0);
  int64_t last = -1;
  for (int64_t count = 0;;) {
    if (count == fail_at) return round.ring.fail();
    int64_t slot = -1;
    SlotContent content{};
    const auto begin = Clock::now();
    const RingResult got = round.ring.take(number, any_wait(random), &slot, &content);
    if (Clock::now() - begin >= kLongWait) return lost(round, "a waiting consumer is woken");
    if (got == RingResult::kTimeout) continue;
    if (got == RingResult::kFailed) return expect(round.fails, "a consumer fails without a failure");
    if (got == RingResult::kEnded) return;
    dawdle(random);
    const int64_t producer = content.tag / kStride, item = content.tag % kStride;
    expect(content.sequence > last, "slots come in the order of publication");
    expect(item >= next[producer], "slots of one producer come in its order");
    last = content.sequence;
    next[producer] = item + 1;
    const auto* values = static_cast<const float*>(round.ring.data(slot));
    bool same = true;
    for (int64_t k = 0; k < content.rows * shape.dim; ++k) {
      same = same && values[k] == static_cast<float>(producer * round.each + item);
    }
    expect(same, "rows are those that were published");
    round.ring.release(number, slot);
    ++count;
    ++seen;
  }
}

void run(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto draw = [&random](int64_t least, int64_t most) {
    return least + static_cast<int64_t>(random() % static_cast<uint64_t>(most - least + 1));
  };
  const RingShape shape{draw(1, 4), draw(1, 8), draw(1, 24), 4, draw(1, 3)};
  const int64_t ending = draw(0, 4);  // 0: a producer fails, 1: a consumer, 2: it is closed early, others: nothing
  Round round{EmbeddingRing(shape), draw(1, 3), draw(1, 40), ending < 3};
  const int64_t threads_each = draw(1, 2);
  std::vector<std::atomic<int64_t>> seen(static_cast<size_t>(shape.consumers));
  std::vector<std::thread> producers, consumers;
  for (int64_t p = 0; p < round.producers; ++p) {
    const int64_t fail_at = ending == 0 && p == 0 ? draw(0, round.each - 1) : -1;
    producers.emplace_back(produce, std::ref(round), p, fail_at, random());
  }
  for (int64_t c = 0; c < shape.consumers; ++c) {
    for (int64_t t = 0; t < threads_each; ++t) {
      const int64_t fail_at = ending == 1 && c == 0 ? draw(0, round.each) : -1;
      consumers.emplace_back(consume, std::ref(round), c, fail_at, random(), std::ref(seen[c]));
    }
  }
  if (ending == 2) {
    std::this_thread::sleep_for(std::chrono::microseconds(draw(0, 500)));
    round.ring.close();
  }
  for (std::thread& thread : producers) thread.join();
  round.ring.close();
  for (std::thread& thread : consumers) thread.join();
  if (!round.ring.failed()) {
    expect(ending == 2 || round.filled == round.producers * round.each, "every slot is published");
    for (const auto& count : seen) expect(count == round.filled, "every consumer sees every slot exactly once");
    for (const SlotState state : round.ring.states()) expect(state == SlotState::kFree, "every slot ends free");
  }
}

// Consumers of a closed ring wait for the slots that are being filled, and must hear of one that is given up.
void last_slot_abandoned() {
  EmbeddingRing ring({1, 1, 1, 4, 1});
  int64_t filling = -1;
  ring.acquire(0s, &filling);
  ring.close();
  const auto begin = Clock::now();
  std::thread consumer([&ring] {
    int64_t slot = -1;
    SlotContent content{};
    expect(ring.take(0, kLongWait, &slot, &content) == RingResult::kEnded, "the stream ends");
  });
  std::this_thread::sleep_for(50ms);  // until the consumer waits
  ring.abandon(filling);
  consumer.join();
  expect(Clock::now() - begin < kLongWait, "a consumer is woken by the last slot's return");
}

}  // namespace

int main(int count, char** arguments) {
  alarm(120);
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 200;
  const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0;
  last_slot_abandoned();
  for (int i = 0; i < rounds && problems == 0; ++i) {
    run(seed + static_cast<uint64_t>(i));
    if (problems > 0) std::fprintf(stderr, "in the round with seed %llu\n", static_cast<unsigned long long>(seed) + i);
  }
  if (problems == 0) std::printf("%d rounds without a violation\n", rounds);
  return problems > 0;
}
