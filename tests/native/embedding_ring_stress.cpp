// Producers and consumers with random delays, failures and closings, for the sanitizers; some rows are copied by a
// device that takes its time: that of host_copies.h, or with ANCE_FAST_WITH_CUDA the code for CUDA on the stand-in of
// host_cuda_runtime.h. Prints what went wrong and ends with status 1; a hang is ended by an alarm.
//
//     embedding_ring_stress [rounds] [seed]
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "embedding_ring.h"
#ifdef ANCE_FAST_WITH_CUDA
#include "host_cuda_runtime.h"
#else
#include "host_copies.h"
#endif

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
  std::atomic<int64_t>& sources;  // that are alive
};

// Rows of a device, which its stream fills with `value`. When they are let go of they are overwritten, as by whoever is
// given the memory next: a copy that is not made by then brings wrong values.
DeviceSource device_rows(Round& round, const ProducerStream& stream, int64_t rows, float value) {
  auto* values = new std::vector<float>(static_cast<size_t>(rows * round.ring.shape().dim), -3.0f);
  ++round.sources;
  const std::shared_ptr<void> owner(values, [&sources = round.sources](void* held) {
    auto* values = static_cast<std::vector<float>*>(held);
    std::fill(values->begin(), values->end(), -1.0f);
    delete values;
    --sources;
  });
  stream.launch([values, value] { std::fill(values->begin(), values->end(), value); });
  return {values->data(), stream.device(), stream.handle(), owner};
}

// Some rows by the host, the rest by one or two copies of the device. False: the device refuses.
bool write_rows(Round& round, const ProducerStream& stream, int64_t slot, int64_t rows, float value,
                std::mt19937_64& random) {
  const int64_t by_host = random() % 3 == 0 ? rows : static_cast<int64_t>(random() % static_cast<uint64_t>(rows));
  auto* values = static_cast<float*>(round.ring.data(slot));
  std::fill(values, values + by_host * round.ring.shape().dim, value);
  for (int64_t first = by_host; first < rows;) {
    const int64_t count = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(rows - first));
    try {
      round.ring.copy_from_device(slot, first, count, device_rows(round, stream, count, value));
    } catch (const std::runtime_error&) {
      return false;
    }
    first += count;
  }
  return true;
}

// What a wake-up was for may be found when the wait runs out, so the time tells, not the result.
void lost(Round& round, const char* what) {
  expect(false, what);
  round.ring.fail();
}

void produce(Round& round, int64_t number, int64_t fail_at, uint64_t seed) {
  std::mt19937_64 random(seed);
  const RingShape& shape = round.ring.shape();
  const ProducerStream stream(static_cast<int>(number % 2));
  for (int64_t i = 0; i < round.each;) {
    if (i == fail_at) return round.ring.fail();
    int64_t slot = -1;
    const auto begin = Clock::now();
    const RingResult got = round.ring.acquire(any_wait(random), &slot);
    if (Clock::now() - begin >= kLongWait) return lost(round, "a waiting producer is woken");
    if (got == RingResult::kTimeout) continue;
    if (got != RingResult::kDone) return expect(round.fails, "a producer is turned away without a failure");
    dawdle(random);
    const int64_t rows = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(shape.rows));
    const bool given_up = random() % 8 == 0;
    const float value = static_cast<float>(given_up ? -2 : number * round.each + i);
    const bool written = write_rows(round, stream, slot, rows, value, random);
    if (given_up || !written) {
      round.ring.abandon(slot);
      if (!written) return expect(round.fails && round.ring.failed(), "a refused copy fails the ring");
      continue;
    }
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

int64_t between(std::mt19937_64& random, int64_t least, int64_t most) {
  return least + static_cast<int64_t>(random() % static_cast<uint64_t>(most - least + 1));
}

void play(Round& round, const CopyLog& log, int64_t ending, std::mt19937_64& random) {
  const RingShape& shape = round.ring.shape();
  const auto draw = [&random](int64_t least, int64_t most) { return between(random, least, most); };
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
    // The clock of the devices stands at some seconds, which leaves the time of a copy with six digits.
    const double seconds = kSecondsPerByte * static_cast<double>(log.bytes);
    expect(std::abs(round.ring.copy_seconds() - seconds) <= 1e-4 * seconds, "every copy's time counts once");
  }
}

void run(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto draw = [&random](int64_t least, int64_t most) { return between(random, least, most); };
  const RingShape shape{draw(1, 4), draw(1, 8), draw(1, 24), 4, draw(1, 3)};
  // 0: a producer fails, 1: a consumer, 2: it is closed early, 3: a copy fails, 4: a copy is refused, others: nothing
  const int64_t ending = draw(0, 6);
  const int64_t bad_copy = ending == 3 || ending == 4 ? draw(0, 40) : -1;
  CopyLog log;
  std::atomic<int64_t> sources{0};
  {
    auto copies = make_copies(&log, shape.slots, random(), bad_copy, ending == 4);
    const bool page_locked = draw(0, 1) == 1;
    Round round{EmbeddingRing(shape, std::move(copies), page_locked), draw(1, 3), draw(1, 40), ending < 5, {0}, sources};
    play(round, log, ending, random);
    expect(bad_copy < 0 || log.asked <= bad_copy || !round.ring.copy_failure().empty(), "a failed copy fails the ring");
    expect(ending == 3 || ending == 4 || round.ring.copy_failure().empty(), "no copy fails by itself");
  }
  expect(log.made == log.asked, "a ring outlives its copies");
  expect(log.locked == 0, "pages are unlocked");
  expect(sources == 0, "sources are let go of");
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

// A slot whose copy is not made yet is given to nobody, and a failure ends that wait but not the copy.
void copy_under_way() {
  CopyLog log;
  std::atomic<int64_t> sources{0};
  std::thread later;
  {
    Round round{EmbeddingRing({1, 1, 1, 4, 1}, make_copies(&log, 1, 0, -1, false)), 1, 1, true, {0}, sources};
    const ProducerStream stream(1);
    int64_t slot = -1;
    SlotContent content{};
    log.paused = true;
    round.ring.acquire(0s, &slot);
    round.ring.copy_from_device(slot, 0, 1, device_rows(round, stream, 1, 5.0f));
    expect(round.ring.publish(slot, 1, 0) == RingResult::kDone, "publishing does not wait for copies");
    for (const auto wait : {0ms, 5ms}) {
      expect(round.ring.take(0, wait, &slot, &content) == RingResult::kTimeout, "a copy under way is waited for");
    }
    expect(round.ring.states()[0] == SlotState::kReady, "a wait that has timed out has taken nothing");
    const auto begin = Clock::now();
    std::thread consumer([&round] {
      int64_t slot = -1;
      SlotContent content{};
      expect(round.ring.take(0, kLongWait, &slot, &content) == RingResult::kFailed, "a failure ends the wait");
    });
    std::this_thread::sleep_for(20ms);  // until the consumer waits
    round.ring.fail();
    consumer.join();
    expect(Clock::now() - begin < kLongWait, "a consumer that waits for a copy hears of a failure");
    expect(sources == 1 && log.made == 0, "the copy is still under way");
    expect(round.ring.copy_seconds() == 0, "a copy under way has no time yet");
    later = std::thread([&log] {
      std::this_thread::sleep_for(20ms);  // until the destructor waits
      log.paused = false;
    });
  }
  expect(sources == 0 && log.made == 1, "a ring outlives its copies");
  later.join();
}

}  // namespace

int main(int count, char** arguments) {
  alarm(120);
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 200;
  const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0;
  last_slot_abandoned();
  copy_under_way();
  for (int i = 0; i < rounds && problems == 0; ++i) {
    run(seed + static_cast<uint64_t>(i));
    if (problems > 0) std::fprintf(stderr, "in the round with seed %llu\n", static_cast<unsigned long long>(seed) + i);
  }
  if (problems == 0) std::printf("%d rounds without a violation\n", rounds);
  return problems > 0;
}
