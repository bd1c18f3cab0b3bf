// genie-bench queue: our SPSC ring and MPMC queue beside Boost.Lockfree, moodycamel and DPDK's rte_ring.
//
// Two threads, each pinned to a core; all queues hold 1024 items (rte_ring 1023). batch is how many items one call may
// carry. moodycamel's queue uses its fastest interface, tokens; it is unbounded and keeps order per producer only, in one
// subqueue for each: where two threads push and pop in turn (both_ways), each mostly pops what it pushed itself, and the
// two hardly meet. The rows stay, for that is how it would be used; a queue with one order cannot avoid the meeting.
#if defined(GENIE_BENCH_BOOST)
#include <boost/lockfree/queue.hpp>
#include <boost/lockfree/spsc_queue.hpp>
#endif
#if defined(GENIE_BENCH_MOODYCAMEL)
#include <concurrentqueue/concurrentqueue.h>
#endif

#include "bench/benches.h"
#include "bench/queue/loops.h"
#include "datapath/queue/mpmc_queue.h"
#include "datapath/queue/spsc_ring.h"

namespace genie::bench {
namespace {

template <size_t bytes>
class OurSpsc {
 public:
  using Item = QueueItem<bytes>;
  using Ring = queue::SpscRing<Item>;

  size_t push(const Item* items, size_t count, size_t /*thread*/) {
    return count == 1 ? producer_.try_push(*items) : producer_.push_batch({items, count});
  }
  size_t pop(Item* items, size_t count, size_t /*thread*/) {
    return count == 1 ? consumer_.try_pop(*items) : consumer_.pop_batch({items, count});
  }

 private:
  struct alignas(queue::kNoSharing) Memory {
    std::array<std::byte, Ring::bytes(kQueueCapacity)> bytes_;
  };
  Memory memory_{};
  Ring ring_ = Ring::format(&memory_, kQueueCapacity);
  alignas(queue::kNoSharing) queue::SpscProducer<Item> producer_ = ring_.producer();
  alignas(queue::kNoSharing) queue::SpscConsumer<Item> consumer_ = ring_.consumer();
};

template <size_t bytes>
class OurMpmc {
 public:
  using Item = QueueItem<bytes>;
  size_t push(const Item* items, size_t count, size_t /*thread*/) {
    return count == 1 ? queue_.try_push(*items) : queue_.push_batch({items, count});
  }
  size_t pop(Item* items, size_t count, size_t /*thread*/) {
    return count == 1 ? queue_.try_pop(*items) : queue_.pop_batch({items, count});
  }

 private:
  queue::MpmcQueue<Item> queue_{kQueueCapacity};
};

#if defined(GENIE_BENCH_BOOST)
template <size_t bytes>
class BoostSpsc {
 public:
  using Item = QueueItem<bytes>;
  size_t push(const Item* items, size_t count, size_t /*thread*/) {
    return count == 1 ? queue_.push(*items) : queue_.push(items, count);
  }
  size_t pop(Item* items, size_t count, size_t /*thread*/) {
    return count == 1 ? queue_.pop(*items) : queue_.pop(items, count);
  }

 private:
  boost::lockfree::spsc_queue<Item, boost::lockfree::capacity<kQueueCapacity>> queue_;
};

template <size_t bytes>
class BoostMpmc {
 public:
  using Item = QueueItem<bytes>;
  // No batches there.
  size_t push(const Item* items, size_t count, size_t /*thread*/) {
    size_t done = 0;
    while (done < count && queue_.bounded_push(items[done])) ++done;
    return done;
  }
  size_t pop(Item* items, size_t count, size_t /*thread*/) {
    size_t done = 0;
    while (done < count && queue_.pop(items[done])) ++done;
    return done;
  }

 private:
  boost::lockfree::queue<Item, boost::lockfree::capacity<kQueueCapacity>> queue_;
};
#endif

#if defined(GENIE_BENCH_MOODYCAMEL)
template <size_t bytes>
class Moodycamel {
 public:
  using Item = QueueItem<bytes>;
  size_t push(const Item* items, size_t count, size_t thread) {
    if (count == 1) return queue_.try_enqueue(producers_[thread], *items);
    return queue_.try_enqueue_bulk(producers_[thread], items, count) ? count : 0;
  }
  size_t pop(Item* items, size_t count, size_t thread) {
    if (count == 1) return queue_.try_dequeue(consumers_[thread], *items);
    return queue_.try_dequeue_bulk(consumers_[thread], items, count);
  }

 private:
  moodycamel::ConcurrentQueue<Item> queue_{kQueueCapacity, 2, 0};
  std::array<moodycamel::ProducerToken, 2> producers_{moodycamel::ProducerToken(queue_),
                                                      moodycamel::ProducerToken(queue_)};
  std::array<moodycamel::ConsumerToken, 2> consumers_{moodycamel::ConsumerToken(queue_),
                                                      moodycamel::ConsumerToken(queue_)};
};
#endif

template <size_t bytes>
std::vector<QueueLoops> spsc_peers() {
  std::vector<QueueLoops> peers;
#if defined(GENIE_BENCH_BOOST)
  peers.push_back(
      queue_loops<false>("boost::lockfree::spsc_queue", [] { return std::make_unique<BoostSpsc<bytes>>(); }));
#endif
#if defined(GENIE_BENCH_MOODYCAMEL)
  peers.push_back(queue_loops<false>("moodycamel, tokens", [] { return std::make_unique<Moodycamel<bytes>>(); }));
#endif
#if defined(GENIE_BENCH_RTE_RING)
  peers.push_back(rte_ring_loops<bytes>(false));
#endif
  return peers;
}

template <size_t bytes>
std::vector<QueueLoops> mpmc_peers() {
  std::vector<QueueLoops> peers;
#if defined(GENIE_BENCH_BOOST)
  peers.push_back(queue_loops<true>("boost::lockfree::queue", [] { return std::make_unique<BoostMpmc<bytes>>(); }));
#endif
#if defined(GENIE_BENCH_MOODYCAMEL)
  peers.push_back(queue_loops<true>("moodycamel, tokens", [] { return std::make_unique<Moodycamel<bytes>>(); }));
#endif
#if defined(GENIE_BENCH_RTE_RING)
  peers.push_back(rte_ring_loops<bytes>(true));
#endif
  return peers;
}

// One row per peer for one loop.
template <class Loop>
void measure(Harness& harness, RowSpec spec, const QueueLoops& ours, const std::vector<QueueLoops>& peers,
             const Loop& loop) {
  Row row = harness.row(std::move(spec));
  row.ours([&] { return loop(ours); });
  for (const QueueLoops& peer : peers) row.peer(peer.name, [&] { return loop(peer); });
  row.measure();
}

template <size_t bytes>
void measure_queue(Harness& harness, const std::string& name, const QueueLoops& ours,
                   const std::vector<QueueLoops>& peers) {
  const uint64_t count = harness.full_or_quick<uint64_t>(640'000, 160'000);
  for (const size_t batch : {size_t{1}, kMaxBatch}) {
    const auto spec = [&](const char* pattern) {
      return RowSpec{.name = name,
                     .params = {{"pattern", pattern}, {"bytes", bytes}, {"batch", batch}},
                     .unit = "Mops/s",
                     .better = Better::kHigher,
                     .target = 1.0};
    };
    measure(harness, spec("one_to_one"), ours, peers,
            [=](const QueueLoops& loops) { return loops.one_to_one(count, batch); });
    if (ours.both_ways) {
      measure(harness, spec("both_ways"), ours, peers,
              [=](const QueueLoops& loops) { return loops.both_ways(count / 4, batch); });
    }
  }
  const uint64_t rounds = harness.full_or_quick<uint64_t>(40'000, 10'000);
  measure(harness,
          {.name = name,
           .params = {{"pattern", "ping_pong"}, {"bytes", bytes}},
           .unit = "ns",
           .better = Better::kLower,
           .target = 1.0},
          ours, peers, [=](const QueueLoops& loops) { return loops.ping_pong(rounds); });
}

template <size_t bytes>
void run_spsc(Harness& harness) {
  measure_queue<bytes>(harness, "queue.spsc",
                       queue_loops<false>("ours", [] { return std::make_unique<OurSpsc<bytes>>(); }),
                       spsc_peers<bytes>());
}

template <size_t bytes>
void run_mpmc(Harness& harness) {
  measure_queue<bytes>(harness, "queue.mpmc",
                       queue_loops<true>("ours", [] { return std::make_unique<OurMpmc<bytes>>(); }),
                       mpmc_peers<bytes>());
}

void run_queue(Harness& harness) {
  if (usable_cores().size() < 2) harness.note("only one core is usable: the two threads of each loop take turns on it");
#if !defined(GENIE_BENCH_RTE_RING)
  harness.note("built without DPDK: no rte_ring beside ours");
#endif
#if !defined(GENIE_BENCH_BOOST)
  harness.note("built without Boost: no Boost.Lockfree beside ours");
#endif
#if !defined(GENIE_BENCH_MOODYCAMEL)
  harness.note("built without moodycamel's ConcurrentQueue beside ours");
#endif
  run_spsc<8>(harness);
  run_spsc<64>(harness);
  run_mpmc<8>(harness);
  run_mpmc<56>(harness);
}

const Registration kQueue("queue", run_queue);

}  // namespace
}  // namespace genie::bench
