// SpscRing: a bounded ring from one producer to one consumer, in memory that the caller provides.
//
// Purpose: the submission and completion rings of sessions. It works between threads and, in shared memory mapped at
//   different addresses, between processes: the memory holds two indices and the slots, no pointers.
// Thread-safety: one thread at a time uses the producer handle, one the consumer handle. Nothing else is shared.
// Ownership: the memory is the caller's and outlives the handles. No allocation, lock or system call.
// Trust: a handle keeps its own index and the geometry privately and checks the other side's index, so a peer that
//   writes nonsense into the memory can at worst hand over nonsense items or stop the ring: accesses stay within the
//   slots, and corrupt() says what happened. Items in memory that the peer can still write may change while they are
//   looked at: copy them out once (try_pop, pop_batch), then verify.
//
// Invariants (tail and head count items since the ring was formatted; slot of item i is i & (capacity - 1)):
//   1. head <= tail <= head + capacity.
//   2. Only the producer stores `tail`, only the consumer stores `head`; both only grow.
//   3. Slots of items [head, tail) belong to the consumer, all others to the producer.
//   4. The producer writes a slot, then stores tail with release; the consumer loads tail with acquire, then reads the
//      slot. So an item is complete before it is seen.
//   5. The consumer reads a slot, then stores head with release; the producer loads head with acquire, then writes the
//      slot again. So a slot is read before it is overwritten.
//   6. A cached index (seen_head_, seen_tail_) is an old value of the real one. By 2 it errs on the safe side: the ring
//      looks fuller to the producer and emptier to the consumer. It is refreshed only when it says "no".
#pragma once

#include <algorithm>
#include <bit>
#include <cassert>
#include <new>
#include <span>
#include <type_traits>

#include "datapath/queue/memory.h"

namespace genie::queue {

// The places in the code where an order is needed; see the invariants.
enum class SpscSite : uint8_t { kProducerLoadsHead, kProducerStoresTail, kConsumerLoadsTail, kConsumerStoresHead };

// What both sides share besides the slots. All zero is an empty ring.
template <class Memory = StdMemory>
struct SpscControl {
  alignas(kNoSharing) typename Memory::template Atomic<uint64_t> tail{0};  // stored by the producer
  alignas(kNoSharing) typename Memory::template Atomic<uint64_t> head{0};  // stored by the consumer
};
static_assert(sizeof(SpscControl<>) == 2 * kNoSharing);
static_assert(std::is_standard_layout_v<SpscControl<>>);

template <class T, class Memory = StdMemory>
class alignas(kCacheLine) SpscProducer {
 public:
  using Control = SpscControl<Memory>;
  using Cell = typename Memory::template Cell<T>;

  // The ring must be empty and new: both indices zero. `capacity` is a power of two.
  SpscProducer(Control* control, Cell* slots, uint64_t capacity) noexcept
      : control_(control), slots_(slots), capacity_(capacity) {
    assert(std::has_single_bit(capacity));
  }

  // False when the ring is full.
  [[gnu::always_inline]] bool try_push(const T& item) noexcept {
    if (tail_ - seen_head_ >= capacity_ && refresh_free() == 0) [[unlikely]]
      return false;
    Memory::write(slots_[tail_ & (capacity_ - 1)], item);
    commit(1);
    return true;
  }

  // Pushes a prefix of `items` and shows it at once; returns its length.
  size_t push_batch(std::span<const T> items) noexcept {
    const size_t count = std::min(items.size(), free_slots(items.size()));
    for (size_t i = 0; i < count; ++i) Memory::write(slots_[(tail_ + i) & (capacity_ - 1)], items[i]);
    if (count != 0) commit(count);
    return count;
  }

  // Up to `count` free slots in one piece, to be filled in place and shown by commit(). Fewer where the ring is fuller
  // or ends; empty when it is full. Without a commit() nothing happened.
  std::span<Cell> reserve(size_t count) noexcept {
    const uint64_t first = tail_ & (capacity_ - 1);
    return {slots_ + first, std::min({count, free_slots(count), static_cast<size_t>(capacity_ - first)})};
  }

  // Shows the first `count` slots of the last reserve() to the consumer.
  [[gnu::always_inline]] void commit(size_t count) noexcept {
    assert(count <= capacity_ - (tail_ - seen_head_));
    tail_ += count;
    control_->tail.store(tail_, Memory::order(SpscSite::kProducerStoresTail, std::memory_order_release));
    fetch_ahead(count);
  }

  // How many items fit, looking at the consumer's index only when fewer than `wanted` are known to.
  [[gnu::always_inline]] size_t free_slots(size_t wanted) noexcept {
    const size_t known = capacity_ - (tail_ - seen_head_);
    return known >= wanted ? known : refresh_free();
  }

  uint64_t capacity() const noexcept { return capacity_; }
  // Items pushed so far.
  uint64_t pushed() const noexcept { return tail_; }
  // The consumer's index was impossible: the ring must be dropped. It stays as full as it was.
  bool corrupt() const noexcept { return corrupt_; }

 private:
  // As many slots as were just filled will probably be filled next. Where each is most of a cache line, and known to be
  // free, it is fetched from the consumer's cache now and not when its first store waits for it.
  [[gnu::always_inline]] void fetch_ahead(size_t count) noexcept {
    if constexpr (sizeof(Cell) >= kCacheLine / 2) {
      const size_t ahead = std::min<size_t>(count, capacity_ - (tail_ - seen_head_));
      for (size_t i = 0; i < ahead; ++i) Memory::will_write(slots_ + ((tail_ + i) & (capacity_ - 1)));
    }
  }

  size_t refresh_free() noexcept {
    const uint64_t head = control_->head.load(Memory::order(SpscSite::kProducerLoadsHead, std::memory_order_acquire));
    if (head - seen_head_ > tail_ - seen_head_) [[unlikely]] {
      corrupt_ = true;
    } else {
      seen_head_ = head;
    }
    return capacity_ - (tail_ - seen_head_);
  }

  Control* control_;
  Cell* slots_;
  uint64_t capacity_;
  uint64_t tail_ = 0;
  uint64_t seen_head_ = 0;
  bool corrupt_ = false;
};

template <class T, class Memory = StdMemory>
class alignas(kCacheLine) SpscConsumer {
 public:
  using Control = SpscControl<Memory>;
  using Cell = typename Memory::template Cell<T>;

  // The ring must be new: head zero. The producer may have begun. `capacity` is a power of two.
  SpscConsumer(Control* control, Cell* slots, uint64_t capacity) noexcept
      : control_(control), slots_(slots), capacity_(capacity) {
    assert(std::has_single_bit(capacity));
  }

  // False when the ring is empty.
  [[gnu::always_inline]] bool try_pop(T& item) noexcept {
    if (head_ == seen_tail_ && refresh_ready() == 0) [[unlikely]]
      return false;
    item = Memory::read(slots_[head_ & (capacity_ - 1)]);
    release(1);
    return true;
  }

  // Pops up to items.size() items, gives their slots back at once, and returns how many.
  size_t pop_batch(std::span<T> items) noexcept {
    const size_t count = std::min(items.size(), ready_items(items.size()));
    for (size_t i = 0; i < count; ++i) items[i] = Memory::read(slots_[(head_ + i) & (capacity_ - 1)]);
    if (count != 0) release(count);
    return count;
  }

  // Up to `count` of the oldest items in one piece, to be used in place and given back by release(). Fewer where the
  // ring ends. peek() again without release() gives the same items.
  std::span<const Cell> peek(size_t count) noexcept {
    const uint64_t first = head_ & (capacity_ - 1);
    return {slots_ + first, std::min({count, ready_items(count), static_cast<size_t>(capacity_ - first)})};
  }

  // Gives the slots of the oldest `count` items back to the producer.
  [[gnu::always_inline]] void release(size_t count) noexcept {
    assert(count <= seen_tail_ - head_);
    head_ += count;
    control_->head.store(head_, Memory::order(SpscSite::kConsumerStoresHead, std::memory_order_release));
  }

  // How many items are there, looking at the producer's index only when fewer than `wanted` are known to be.
  [[gnu::always_inline]] size_t ready_items(size_t wanted) noexcept {
    const size_t known = seen_tail_ - head_;
    return known >= wanted ? known : refresh_ready();
  }

  uint64_t capacity() const noexcept { return capacity_; }
  // Items popped so far.
  uint64_t popped() const noexcept { return head_; }
  // The producer's index was impossible: the ring must be dropped. What was seen before can still be popped.
  bool corrupt() const noexcept { return corrupt_; }

 private:
  size_t refresh_ready() noexcept {
    const uint64_t tail = control_->tail.load(Memory::order(SpscSite::kConsumerLoadsTail, std::memory_order_acquire));
    // Both a tail behind what was seen and one too far ahead are a broken peer's.
    if (tail - head_ > capacity_ || tail - head_ < seen_tail_ - head_) [[unlikely]] {
      corrupt_ = true;
    } else {
      seen_tail_ = tail;
    }
    return seen_tail_ - head_;
  }

  Control* control_;
  Cell* slots_;
  uint64_t capacity_;
  uint64_t head_ = 0;
  uint64_t seen_tail_ = 0;
  bool corrupt_ = false;
};

static_assert(sizeof(SpscProducer<uint64_t>) == kCacheLine);
static_assert(sizeof(SpscConsumer<uint64_t>) == kCacheLine);

// Where a ring lies: the control block, then the slots. Copied freely; both processes make their own from their own
// mapping with the same capacity.
template <class T, class Memory = StdMemory>
class SpscRing {
 public:
  static_assert(std::is_trivially_copyable_v<T>, "items cross process borders as bytes");
  using Control = SpscControl<Memory>;
  using Cell = typename Memory::template Cell<T>;
  static_assert(alignof(Cell) <= kNoSharing);

  static constexpr bool valid_capacity(uint64_t capacity) noexcept {
    return std::has_single_bit(capacity) && capacity <= uint64_t{1} << 32;
  }
  static constexpr size_t bytes(uint64_t capacity) noexcept { return sizeof(Control) + capacity * sizeof(Cell); }

  // Makes an empty ring in `memory`: bytes(capacity) bytes, aligned to kNoSharing. Once, before either side begins.
  static SpscRing format(void* memory, uint64_t capacity) noexcept {
    SpscRing ring = at(memory, capacity);
    new (ring.control_) Control;
    for (uint64_t i = 0; i < capacity; ++i) new (ring.slots_ + i) Cell();
    return ring;
  }

  // A ring that somebody formatted; memory of zeros counts as formatted.
  static SpscRing at(void* memory, uint64_t capacity) noexcept {
    assert(valid_capacity(capacity));
    assert(reinterpret_cast<uintptr_t>(memory) % kNoSharing == 0);
    auto* bytes = static_cast<std::byte*>(memory);
    return SpscRing(reinterpret_cast<Control*>(bytes), reinterpret_cast<Cell*>(bytes + sizeof(Control)), capacity);
  }

  SpscProducer<T, Memory> producer() const noexcept { return {control_, slots_, capacity_}; }
  SpscConsumer<T, Memory> consumer() const noexcept { return {control_, slots_, capacity_}; }

 private:
  SpscRing(Control* control, Cell* slots, uint64_t capacity) noexcept
      : control_(control), slots_(slots), capacity_(capacity) {}

  Control* control_;
  Cell* slots_;
  uint64_t capacity_;
};

}  // namespace genie::queue
