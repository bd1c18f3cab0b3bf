// What the contention tests share: items that show tearing, and threads that never wait for ever.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "datapath/base/clock.h"

namespace genie::queue {

// Three words that must arrive together.
struct Item {
  uint64_t producer = 0;
  uint64_t number = 0;
  uint64_t seal = 0;

  static Item make(uint64_t producer, uint64_t number) { return {producer, number, ~(producer * 31 + number)}; }
  bool whole() const { return seal == ~(producer * 31 + number); }
};

// One test's bound on all waits; a thread that runs out of it stops, and its counts show that.
class Patience {
 public:
  // Between two tries: lets the others run, for there may be fewer cores than threads. False: give up.
  bool wait() const {
    sched_yield();
    return !deadline_.expired();
  }

 private:
  Deadline deadline_ = Deadline::after_ms(60'000);
};

// Runs all functions at the same time.
inline void run_together(const std::vector<std::function<void()>>& functions) {
  std::atomic<size_t> arrived{0};
  std::vector<std::thread> threads;
  for (const auto& function : functions) {
    threads.emplace_back([&] {
      arrived.fetch_add(1);
      while (arrived.load() != functions.size()) sched_yield();
      function();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace genie::queue
