// MessageRing: messages of variable length from one process to another, over a ring in memory that both can write.
//
// Purpose: the ordered small messages and write notifications of one direction of a shared-memory endpoint.
// Thread-safety: one thread at a time uses the sender, one the receiver.
// Ownership: the memory is the caller's.
// Trust: the memory is hostile. Each side keeps its own index and state privately; a header is copied out once, then
//   checked; a payload is copied out before anybody looks at it. Nonsense ends in kCorrupt, never in an access outside.
//
// The ring is an SpscRing of 16-byte units, whose invariants (datapath/queue/spsc_ring.h) order the accesses. On top:
//   1. A message is a header unit and ceil(size / 16) payload units, in consecutive positions.
//   2. It is pushed only when all of it fits, so the sender never waits in the middle of a message.
//   3. Where it crosses the end of the memory it is shown in two steps. The receiver takes a message only when as many
//      units as its header says are there; until then it keeps its copy of the header, which is not read again.
//   4. The largest message is smaller than the ring, so it fits once the ring has drained.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "datapath/queue/spsc_ring.h"

namespace genie::datapath {

inline constexpr size_t kMaxMessageBytes = size_t{16} << 10;
inline constexpr uint64_t kRingUnits = 2048;  // 32 KiB

enum class MessageKind : uint32_t { kMessage = 1, kNotify = 2 };

struct MessageHeader {
  uint32_t size = 0;
  MessageKind kind = MessageKind::kMessage;
  uint32_t immediate = 0;
  uint32_t reserved = 0;
};

struct alignas(16) RingUnit {
  std::byte bytes[16];
};
static_assert(sizeof(MessageHeader) == sizeof(RingUnit));

// Units that a message takes, its header included.
constexpr size_t message_units(size_t size) noexcept { return 1 + (size + sizeof(RingUnit) - 1) / sizeof(RingUnit); }

static_assert(message_units(kMaxMessageBytes) <= kRingUnits);

// Copies payloads between consecutive units and ordinary memory: unit by unit where the memory model is simulated, and at
// full speed on real memory.
template <class Memory>
struct RingCopy {
  template <class Cell>
  static void in(std::span<Cell> slots, std::span<const std::byte> payload) noexcept {
    for (size_t at = 0; at * sizeof(RingUnit) < payload.size(); ++at) {
      RingUnit unit{};
      const auto piece = payload.subspan(at * sizeof(RingUnit));
      std::memcpy(&unit, piece.data(), std::min(sizeof(unit), piece.size()));
      Memory::write(slots[at], unit);
    }
  }
  template <class Cell>
  static void out(std::span<const Cell> slots, std::span<std::byte> payload) noexcept {
    for (size_t at = 0; at * sizeof(RingUnit) < payload.size(); ++at) {
      const RingUnit unit = Memory::read(slots[at]);
      const auto piece = payload.subspan(at * sizeof(RingUnit));
      std::memcpy(piece.data(), &unit, std::min(sizeof(unit), piece.size()));
    }
  }
};

template <>
struct RingCopy<queue::StdMemory> {
  static constexpr size_t kLine = 64;

  // The lines are in the other core's cache: asking for all of them at once costs one journey instead of one each.
  static void in(std::span<RingUnit> slots, std::span<const std::byte> payload) noexcept {
    if (payload.empty()) return;
    auto* to = reinterpret_cast<std::byte*>(slots.data());
    for (size_t at = kLine; at < payload.size(); at += kLine) __builtin_prefetch(to + at, 1);
    std::memcpy(to, payload.data(), payload.size());
  }
  static void out(std::span<const RingUnit> slots, std::span<std::byte> payload) noexcept {
    if (payload.empty()) return;
    const auto* from = reinterpret_cast<const std::byte*>(slots.data());
    for (size_t at = kLine; at < payload.size(); at += kLine) __builtin_prefetch(from + at, 0);
    std::memcpy(payload.data(), from, payload.size());
  }
};

template <class Memory = queue::StdMemory>
class MessageSender {
 public:
  using Ring = queue::SpscRing<RingUnit, Memory>;

  explicit MessageSender(const Ring& ring) noexcept : ring_(ring.producer()) {}

  // False when the ring is too full for all of it. The caller bounds the size by kMaxMessageBytes.
  bool try_send(MessageKind kind, uint32_t immediate, std::span<const std::byte> payload) noexcept {
    const size_t units = message_units(payload.size());
    if (ring_.free_slots(units) < units) return false;
    const MessageHeader header{static_cast<uint32_t>(payload.size()), kind, immediate, 0};
    auto slots = ring_.reserve(units);
    Memory::write(slots[0], std::bit_cast<RingUnit>(header));
    size_t left = units;
    for (size_t behind = 1;; behind = 0) {
      const size_t bytes = std::min((slots.size() - behind) * sizeof(RingUnit), payload.size());
      RingCopy<Memory>::in(slots.subspan(behind), payload.first(bytes));
      payload = payload.subspan(bytes);
      ring_.commit(slots.size());
      left -= slots.size();
      if (left == 0) return true;
      slots = ring_.reserve(left);
    }
  }

  bool has_room(size_t size) noexcept { return ring_.free_slots(message_units(size)) >= message_units(size); }
  // The peer's index made no sense.
  bool corrupt() const noexcept { return ring_.corrupt(); }

 private:
  queue::SpscProducer<RingUnit, Memory> ring_;
};

enum class RingState : uint8_t { kEmpty, kReady, kCorrupt };

template <class Memory = queue::StdMemory>
class MessageReceiver {
 public:
  using Ring = queue::SpscRing<RingUnit, Memory>;

  explicit MessageReceiver(const Ring& ring) noexcept : ring_(ring.consumer()) {}

  // kReady: a whole message is there, and header() says what it is.
  RingState look() noexcept {
    if (!has_header_) {
      const auto slots = ring_.peek(1);
      if (slots.empty()) return ring_.corrupt() ? RingState::kCorrupt : RingState::kEmpty;
      const RingUnit unit = Memory::read(slots[0]);
      // What is checked below is this copy: the compiler must not read the shared one again.
      std::atomic_signal_fence(std::memory_order_seq_cst);
      header_ = std::bit_cast<MessageHeader>(unit);
      if (!plausible(header_)) return RingState::kCorrupt;
      has_header_ = true;
    }
    const size_t units = message_units(header_.size);
    if (ring_.ready_items(units) >= units) return RingState::kReady;
    return ring_.corrupt() ? RingState::kCorrupt : RingState::kEmpty;
  }

  const MessageHeader& header() const noexcept { return header_; }

  // Copies the payload of the message that look() found (header().size bytes) and gives its place back.
  void take(std::byte* to) noexcept {
    std::span<std::byte> left(to, header_.size);
    size_t units = message_units(header_.size);
    for (size_t behind = 1; units != 0; behind = 0) {
      const auto slots = ring_.peek(units);
      const size_t bytes = std::min((slots.size() - behind) * sizeof(RingUnit), left.size());
      RingCopy<Memory>::out(slots.subspan(behind), left.first(bytes));
      left = left.subspan(bytes);
      ring_.release(slots.size());
      units -= slots.size();
    }
    has_header_ = false;
  }

 private:
  static bool plausible(const MessageHeader& header) noexcept {
    if (header.kind == MessageKind::kMessage) return header.size <= kMaxMessageBytes;
    return header.kind == MessageKind::kNotify && header.size == 0;
  }

  queue::SpscConsumer<RingUnit, Memory> ring_;
  MessageHeader header_;
  bool has_header_ = false;
};

}  // namespace genie::datapath
