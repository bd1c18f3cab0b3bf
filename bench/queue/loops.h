// The loops that every queue is measured with, ours and the peers'.
//
// A queue under test gives: using Item; size_t push(const Item*, size_t, size_t thread), size_t pop(Item*, size_t,
// size_t thread), both for a prefix, 0 when full or empty. `thread` tells which of the loop's threads calls, for peers
// with tokens per thread. Items are checked as they come out, so a queue that cheats does not get a number.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include "bench/harness/threads.h"
#include "datapath/base/clock.h"

namespace genie::bench {

// The smallest item, a descriptor that fills a cache line together with a turn, and one that fills it alone.
template <size_t bytes>
struct QueueItem {
  uint64_t value;
  std::array<uint64_t, bytes / 8 - 1> rest;
};
template <>
struct QueueItem<8> {
  uint64_t value;
};

// Waiting for the other thread; throws when that takes absurdly long, so that a queue that loses an item ends the run.
class Patience {
 public:
  void wait() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
    if (++waits_ % kLook == 0 && deadline_.expired()) throw std::runtime_error("the other thread does not come on");
  }

 private:
  static constexpr uint64_t kLook = 1 << 16;
  uint64_t waits_ = 0;
  Deadline deadline_ = Deadline::after_ms(20'000);
};

inline constexpr uint64_t kQueueCapacity = 1024;
inline constexpr size_t kMaxBatch = 32;

template <size_t batch, class Queue>
void push_values(Queue& queue, size_t thread, uint64_t count) {
  std::array<typename Queue::Item, batch> items{};
  Patience patience;
  for (uint64_t next = 0; next < count;) {
    for (size_t i = 0; i < batch; ++i) items[i].value = next + i;
    for (size_t done = 0; done < batch;) {
      const size_t pushed = queue.push(items.data() + done, batch - done, thread);
      if (pushed == 0) patience.wait();
      done += pushed;
    }
    next += batch;
  }
}

// One thread pushes `count` items (a multiple of batch), another pops them: millions of items per second.
template <size_t batch, class Queue>
double one_to_one_mops(Queue& queue, uint64_t count) {
  bool in_order = true;
  const std::array<std::function<void()>, 2> threads = {[&] { push_values<batch>(queue, 0, count); },
                                                        [&] {
                                                          std::array<typename Queue::Item, batch> items;
                                                          Patience patience;
                                                          for (uint64_t next = 0; next < count;) {
                                                            const size_t popped = queue.pop(items.data(), batch, 1);
                                                            if (popped == 0) patience.wait();
                                                            for (size_t i = 0; i < popped; ++i)
                                                              in_order &= items[i].value == next++;
                                                          }
                                                        }};
  const uint64_t elapsed_ns = run_on_cores(threads);
  if (!in_order) throw std::runtime_error("items came out in another order");
  return static_cast<double>(count) * 1e3 / static_cast<double>(elapsed_ns);
}

// Two threads push and pop in turn on one queue: millions of items through it per second.
template <size_t batch, class Queue>
double both_ways_mops(Queue& queue, uint64_t count) {
  std::array<uint64_t, 2> sums{};
  const auto work = [&](size_t thread) {
    std::array<typename Queue::Item, batch> items{};
    Patience patience;
    uint64_t sum = 0;
    uint64_t popped_total = 0;
    for (uint64_t next = 0; next < count; next += batch) {
      for (size_t i = 0; i < batch; ++i) items[i].value = next + i;
      for (size_t done = 0; done < batch;) {
        const size_t pushed = queue.push(items.data() + done, batch - done, thread);
        if (pushed == 0) patience.wait();
        done += pushed;
      }
      // What was pushed by either; at the end everybody has popped as much as it pushed.
      while (popped_total < next + batch) {
        const size_t popped = queue.pop(items.data(), std::min<uint64_t>(batch, next + batch - popped_total), thread);
        if (popped == 0) patience.wait();
        for (size_t i = 0; i < popped; ++i) sum += items[i].value;
        popped_total += popped;
      }
    }
    sums[thread] = sum;
  };
  const std::array<std::function<void()>, 2> threads = {[&] { work(0); }, [&] { work(1); }};
  const uint64_t elapsed_ns = run_on_cores(threads);
  if (sums[0] + sums[1] != count * (count - 1)) throw std::runtime_error("items were lost or doubled");
  return 2 * static_cast<double>(count) * 1e3 / static_cast<double>(elapsed_ns);
}

// One item there and one back, over two queues: nanoseconds per round trip.
template <class Queue>
double ping_pong_ns(Queue& there, Queue& back, uint64_t rounds) {
  const auto pop_one = [](Queue& queue, size_t thread) {
    typename Queue::Item item;
    Patience patience;
    while (queue.pop(&item, 1, thread) == 0) patience.wait();
    return item;
  };
  bool equal = true;
  const std::array<std::function<void()>, 2> threads = {[&] {
                                                          typename Queue::Item item{};
                                                          for (uint64_t i = 0; i < rounds; ++i) {
                                                            item.value = i;
                                                            there.push(&item, 1, 0);
                                                            equal &= pop_one(back, 0).value == i;
                                                          }
                                                        },
                                                        [&] {
                                                          for (uint64_t i = 0; i < rounds; ++i) {
                                                            const typename Queue::Item item = pop_one(there, 1);
                                                            back.push(&item, 1, 1);
                                                          }
                                                        }};
  const uint64_t elapsed_ns = run_on_cores(threads);
  if (!equal) throw std::runtime_error("another item came back");
  return static_cast<double>(elapsed_ns) / static_cast<double>(rounds);
}

// The same loops over a queue whose type stays in one source file: a peer's macros and flags do not reach the others.
struct QueueLoops {
  std::string name;
  std::function<double(uint64_t count, size_t batch)> one_to_one;  // batch 1 or kMaxBatch
  std::function<double(uint64_t count, size_t batch)> both_ways;   // empty for single-producer queues
  std::function<double(uint64_t rounds)> ping_pong;
};

// `make` returns a std::unique_ptr to a new queue. Each loop has its own, made once and reused: a run ends with it empty.
template <bool multi, class Make>
QueueLoops queue_loops(std::string name, Make make) {
  using Pointer = std::shared_ptr<typename decltype(make())::element_type>;
  QueueLoops loops;
  loops.name = std::move(name);
  loops.one_to_one = [queue = Pointer(make())](uint64_t count, size_t batch) {
    return batch == 1 ? one_to_one_mops<1>(*queue, count) : one_to_one_mops<kMaxBatch>(*queue, count);
  };
  if constexpr (multi) {
    loops.both_ways = [queue = Pointer(make())](uint64_t count, size_t batch) {
      return batch == 1 ? both_ways_mops<1>(*queue, count) : both_ways_mops<kMaxBatch>(*queue, count);
    };
  }
  loops.ping_pong = [there = Pointer(make()), back = Pointer(make())](uint64_t rounds) {
    return ping_pong_ns(*there, *back, rounds);
  };
  return loops;
}

// rte_ring_peer.cc, where DPDK was found.
template <size_t bytes>
QueueLoops rte_ring_loops(bool multi);

}  // namespace genie::bench
