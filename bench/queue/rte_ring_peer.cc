// DPDK's rte_ring as a peer, on memory of our own: no EAL is started.
#include <rte_ring.h>
#include <rte_ring_elem.h>

#include <cstdlib>

#include "bench/queue/loops.h"

namespace genie::bench {
namespace {

template <size_t bytes, bool multi>
class RteRing {
 public:
  using Item = QueueItem<bytes>;

  RteRing() {
    // Usable capacity is one less than the count, unless an exact size is asked for (which doubles the slots).
    const ssize_t size = rte_ring_get_memsize_elem(sizeof(Item), kQueueCapacity);
    if (size <= 0) throw std::runtime_error("rte_ring_get_memsize_elem failed");
    ring_ = static_cast<rte_ring*>(
        std::aligned_alloc(kAlignment, (static_cast<size_t>(size) + kAlignment - 1) / kAlignment * kAlignment));
    const unsigned flags = multi ? 0U : RING_F_SP_ENQ | RING_F_SC_DEQ;
    if (ring_ == nullptr || rte_ring_init(ring_, "peer", kQueueCapacity, flags) != 0) {
      throw std::runtime_error("rte_ring_init failed");
    }
  }
  ~RteRing() { std::free(ring_); }
  RteRing(const RteRing&) = delete;
  RteRing& operator=(const RteRing&) = delete;

  size_t push(const Item* items, size_t count, size_t /*thread*/) {
    const auto n = static_cast<unsigned>(count);
    if constexpr (multi) return rte_ring_mp_enqueue_burst_elem(ring_, items, sizeof(Item), n, nullptr);
    return rte_ring_sp_enqueue_burst_elem(ring_, items, sizeof(Item), n, nullptr);
  }
  size_t pop(Item* items, size_t count, size_t /*thread*/) {
    const auto n = static_cast<unsigned>(count);
    if constexpr (multi) return rte_ring_mc_dequeue_burst_elem(ring_, items, sizeof(Item), n, nullptr);
    return rte_ring_sc_dequeue_burst_elem(ring_, items, sizeof(Item), n, nullptr);
  }

 private:
  static constexpr size_t kAlignment = 128;
  rte_ring* ring_;
};

}  // namespace

template <size_t bytes>
QueueLoops rte_ring_loops(bool multi) {
  if (multi) return queue_loops<true>("rte_ring MP/MC", [] { return std::make_unique<RteRing<bytes, true>>(); });
  return queue_loops<false>("rte_ring SP/SC", [] { return std::make_unique<RteRing<bytes, false>>(); });
}
template QueueLoops rte_ring_loops<8>(bool multi);
template QueueLoops rte_ring_loops<56>(bool multi);
template QueueLoops rte_ring_loops<64>(bool multi);

}  // namespace genie::bench
