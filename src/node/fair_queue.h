// FairQueue: whose work a device does next.
//
// Purpose: sessions share a device by its time: of those that have work waiting, the one that was served least goes first; those
//   that were served alike take turns. The work of one session stays in its order.
// Waiting begins with push(): whoever serves pushes what came meanwhile before it charges.
// A session is owed nothing for the time in which it wanted nothing: it comes back where the others are by then. What it had
//   while nobody else waited is held against nobody. New ones begin a little behind, so that sessions that come one after
//   another cannot keep out one that was served more.
// Cost: a heap over the sessions that have work waiting; no allocation once it was as large before.
// Thread-safety: one thread, the device's worker.
// Ownership: owns the work that waits. A share belongs to its session, which its waiting work keeps alive.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace genie::node {

// What a session had of a device, and its work that waits there. T has a member `T* next`.
template <typename T>
struct FairShare {
  uint64_t served_ns = 0;
  uint64_t turn = 0;  // among those that were served alike
  T* first = nullptr;
  T* last = nullptr;
  bool is_new = true;
  bool in_service = false;
};

template <typename T>
class FairQueue {
 public:
  using Share = FairShare<T>;

  FairQueue() = default;
  ~FairQueue() {
    // The last piece of a session's work may take the session along, and the share with it.
    for (const Share* share : waiting_) {
      T* item = share->first;
      while (item != nullptr) delete std::exchange(item, item->next);
    }
  }
  FairQueue(const FairQueue&) = delete;
  FairQueue& operator=(const FairQueue&) = delete;

  bool empty() const noexcept { return waiting_.empty(); }

  void push(Share& share, std::unique_ptr<T> item) {
    T* const raw = item.release();
    raw->next = nullptr;
    if (share.first != nullptr) {
      share.last = share.last->next = raw;
      return;
    }
    share.first = share.last = raw;
    if (share.in_service) return;  // charge() lets it wait again
    const uint64_t least = share.is_new ? clock_ns_ + kNewcomerNs : clock_ns_;
    share.is_new = false;
    share.served_ns = std::max(share.served_ns, least);
    wait(share);
  }

  // Null when nothing waits. charge() follows before the next call.
  std::unique_ptr<T> pop() {
    if (waiting_.empty()) return nullptr;
    std::pop_heap(waiting_.begin(), waiting_.end(), later);
    Share& share = *waiting_.back();
    waiting_.pop_back();
    share.in_service = true;
    clock_ns_ = std::max(clock_ns_, share.served_ns);
    std::unique_ptr<T> item(std::exchange(share.first, share.first->next));
    item->next = nullptr;
    return item;
  }

  // What was popped from `share` took so long.
  void charge(Share& share, uint64_t ns) {
    share.in_service = false;
    share.served_ns += ns;
    if (waiting_.empty()) clock_ns_ = std::max(clock_ns_, share.served_ns);
    if (share.first != nullptr) wait(share);
  }

 private:
  static constexpr uint64_t kNewcomerNs = 100'000;
  static constexpr uint64_t kMostOwedNs = 1'000'000'000;  // of one long piece the others get no more back

  static bool later(const Share* a, const Share* b) noexcept {
    return a->served_ns != b->served_ns ? a->served_ns > b->served_ns : a->turn > b->turn;
  }
  void wait(Share& share) {
    share.served_ns = std::min(share.served_ns, clock_ns_ + kMostOwedNs);
    share.turn = next_turn_++;
    waiting_.push_back(&share);
    std::push_heap(waiting_.begin(), waiting_.end(), later);
  }

  std::vector<Share*> waiting_;  // a heap, the next one in front
  uint64_t next_turn_ = 0;
  uint64_t clock_ns_ = 0;  // how much those have had that are served now
};

}  // namespace genie::node
