// MpmcQueue: a bounded queue between any number of threads of one process.
//
// Purpose: hands work descriptors from pollers to device workers inside a node.
// Thread-safety: every operation may be called from any thread. Construction and destruction may not overlap use.
// Ownership: owns its slots, allocated once by the constructor; items are copied in and out. No allocation, lock or
//   system call afterwards. Order is FIFO by the moment a place is claimed.
//
// Invariants (a ticket counts pushes, or pops, since construction; its slot is ticket & (capacity - 1)):
//   1. tail_ is the next ticket to push, head_ the next to pop. Both only grow, by compare-and-swap: whoever moves one
//      over a ticket owns that ticket's work alone.
//   2. A slot's turn says who may touch it next: turn == t lets the push of ticket t write, turn == t + 1 lets the pop
//      of ticket t read, and that pop sets t + capacity, the turn of the slot's next push. It only grows.
//   3. Only the owner of ticket t moves the slot's turn away from t (push) or t + 1 (pop). So a turn that was seen to
//      fit tickets still to be claimed fits when the claim succeeds, and the claim itself needs no order.
//   4. The pusher writes the value, then stores the turn with release; the popper loads the turn with acquire, then
//      reads the value. So an item is complete before it is seen.
//   5. The popper reads the value, then stores the turn with release; the next pusher loads the turn with acquire, then
//      writes the value. So a slot is read before it is overwritten.
//   6. A turn behind the expected one means full (push) or empty (pop); one ahead means that the ticket is gone.
// A pusher that sleeps between claim and publish holds up the pop of its ticket and of later ones, never their pushes
// until the ring is full: the queue is lock-free for the others only up to that point.
#pragma once

#include <algorithm>
#include <bit>
#include <cassert>
#include <memory>
#include <new>
#include <span>
#include <type_traits>

#include "datapath/queue/memory.h"

namespace genie::queue {

// The places in the code where an order is needed; see the invariants.
enum class MpmcSite : uint8_t { kPushLoadsTurn, kPushStoresTurn, kPopLoadsTurn, kPopStoresTurn };

template <class T, class Memory = StdMemory>
class MpmcQueue {
 public:
  static_assert(std::is_trivially_copyable_v<T>, "items are copied while no other thread may look");

  // `capacity` is a power of two, at least 2: with one slot "written" and "free for the next round" would be one turn.
  explicit MpmcQueue(uint64_t capacity)
      : slots_(static_cast<Slot*>(::operator new(capacity * sizeof(Slot), kArrayAlignment))), capacity_(capacity) {
    assert(std::has_single_bit(capacity) && capacity >= 2);
    for (uint64_t i = 0; i < capacity; ++i) new (slots_ + i) Slot{.turn{i}, .value{}};
  }
  ~MpmcQueue() {
    std::destroy_n(slots_, capacity_);
    ::operator delete(slots_, kArrayAlignment);
  }
  MpmcQueue(const MpmcQueue&) = delete;
  MpmcQueue& operator=(const MpmcQueue&) = delete;

  // False when the queue is full.
  bool try_push(const T& item) noexcept { return push_batch({&item, 1}) == 1; }
  // False when the queue is empty.
  bool try_pop(T& item) noexcept { return pop_batch({&item, 1}) == 1; }

  // Pushes a prefix of `items` as consecutive tickets; returns its length, 0 when the queue is full.
  size_t push_batch(std::span<const T> items) noexcept {
    Memory::will_write(&tail_);
    uint64_t ticket = tail_.load(std::memory_order_relaxed);
    const size_t count = claim<kPush>(tail_, ticket, items.size());
    for (size_t i = 0; i < count; ++i) {
      Slot& slot = slot_of(ticket + i);
      Memory::write(slot.value, items[i]);
      slot.turn.store(ticket + i + 1, Memory::order(MpmcSite::kPushStoresTurn, std::memory_order_release));
    }
    return count;
  }

  // Pops up to items.size() consecutive items; returns how many, 0 when the queue is empty.
  size_t pop_batch(std::span<T> items) noexcept {
    Memory::will_write(&head_);
    uint64_t ticket = head_.load(std::memory_order_relaxed);
    const size_t count = claim<kPop>(head_, ticket, items.size());
    for (size_t i = 0; i < count; ++i) {
      Slot& slot = slot_of(ticket + i);
      items[i] = Memory::read(slot.value);
      slot.turn.store(ticket + i + capacity_, Memory::order(MpmcSite::kPopStoresTurn, std::memory_order_release));
    }
    return count;
  }

  uint64_t capacity() const noexcept { return capacity_; }
  // A moment's guess, for status output only.
  uint64_t size_hint() const noexcept {
    const uint64_t head = head_.load(std::memory_order_relaxed);
    const uint64_t tail = tail_.load(std::memory_order_relaxed);
    return tail > head ? std::min(tail - head, capacity_) : 0;
  }

 private:
  // A slot never straddles two cache lines that it could avoid; with T up to 56 bytes it is one line at most.
  static constexpr size_t kSlotBytes = sizeof(uint64_t) + sizeof(T);
  static constexpr size_t kSlotAlignment = std::min(std::bit_ceil(kSlotBytes), kCacheLine);
  struct alignas(kSlotAlignment) Slot {
    typename Memory::template Atomic<uint64_t> turn;
    typename Memory::template Cell<T> value;
  };
  static constexpr size_t kSlotsPerLine = std::max<size_t>(kCacheLine / sizeof(Slot), 1);
  static constexpr std::align_val_t kArrayAlignment{kNoSharing};
  enum Side : uint8_t { kPush, kPop };

  Slot& slot_of(uint64_t ticket) noexcept { return slots_[ticket & (capacity_ - 1)]; }

  // Claims up to `wanted` tickets from `ticket` on, which is updated to the first one; returns how many.
  template <Side side>
  [[gnu::always_inline]] size_t claim(typename Memory::template Atomic<uint64_t>& next, uint64_t& ticket,
                                      size_t wanted) noexcept {
    constexpr MpmcSite site = side == kPush ? MpmcSite::kPushLoadsTurn : MpmcSite::kPopLoadsTurn;
    constexpr uint64_t ready = side == kPush ? 0 : 1;
    while (wanted != 0) {
      size_t count = 0;
      uint64_t behind = 0;
      // All lines of a batch travel at the same time, and once.
      for (uint64_t t = ticket + 1; t < ticket + wanted; t += kSlotsPerLine) Memory::will_write(&slot_of(t));
      do {
        const uint64_t turn = slot_of(ticket + count).turn.load(Memory::order(site, std::memory_order_acquire));
        behind = turn - (ticket + count + ready);
      } while (behind == 0 && ++count < wanted);
      if (count == 0) {
        if (static_cast<int64_t>(behind) < 0) return 0;
        ticket = next.load(std::memory_order_relaxed);
      } else if (next.compare_exchange_weak(ticket, ticket + count, std::memory_order_relaxed,
                                            std::memory_order_relaxed)) {
        return count;
      }
    }
    return 0;
  }

  alignas(kNoSharing) typename Memory::template Atomic<uint64_t> tail_{0};
  alignas(kNoSharing) typename Memory::template Atomic<uint64_t> head_{0};
  alignas(kNoSharing) Slot* slots_;  // read-only after construction, so on a line of their own
  uint64_t capacity_;
};

static_assert(sizeof(MpmcQueue<uint64_t>) == 3 * kNoSharing);

}  // namespace genie::queue
