// Threads on cores of their own, started together.
//
// Thread-safety: call from one thread. Ownership: run_on_cores() joins what it starts.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <span>
#include <thread>
#include <vector>

#include "datapath/base/clock.h"

namespace genie::bench {

// The cores that this process may use.
inline std::vector<int> usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &set)) cores.push_back(core);
    }
  }
  return cores;
}

inline void pin_this_thread(int core) noexcept {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

// Asks for the lowest real-time priority, so that other processes do not take a core from one of two threads that wait
// for each other: at ordinary priority a busy machine measures its scheduler. Needs root or CAP_SYS_NICE; else false.
inline bool prefer_this_thread() noexcept {
  sched_param parameters{};
  parameters.sched_priority = sched_get_priority_min(SCHED_FIFO);
  return pthread_setschedparam(pthread_self(), SCHED_FIFO, &parameters) == 0;
}

// Runs each function on a thread of its own, thread i pinned to the i-th usable core (modulo their number) and
// preferred where there is a core for each; all begin together. Returns the nanoseconds from there until the last one ended; rethrows the first function's exception.
inline uint64_t run_on_cores(std::span<const std::function<void()>> functions) {
  const std::vector<int> cores = usable_cores();
  std::atomic<size_t> arrived{0};
  std::vector<std::exception_ptr> failures(functions.size());
  std::vector<uint64_t> begun(functions.size());
  std::vector<uint64_t> ended(functions.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < functions.size(); ++i) {
    threads.emplace_back([&, i] {
      if (!cores.empty()) pin_this_thread(cores[i % cores.size()]);
      if (functions.size() <= cores.size()) prefer_this_thread();
      arrived.fetch_add(1);
      while (arrived.load() != functions.size()) {
        if (functions.size() > cores.size()) sched_yield();
      }
      begun[i] = now_ns();
      try {
        functions[i]();
      } catch (...) {
        failures[i] = std::current_exception();
      }
      ended[i] = now_ns();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
  return *std::max_element(ended.begin(), ended.end()) - *std::min_element(begun.begin(), begun.end());
}

}  // namespace genie::bench
