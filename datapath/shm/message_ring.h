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
    auto unit = std::bit_cast<RingUnit>(header);
    for (size_t done = 0; done < units;) {
      const auto slots = ring_.reserve(units - done);
      size_t at = 0;
      if (done == 0) Memory::write(slots[at++], unit);
      for (; at < slots.size(); ++at) {
        const size_t offset = (done + at - 1) * sizeof(RingUnit);
        if (payload.size() - offset >= sizeof(RingUnit)) [[likely]] {
          std::memcpy(&unit, payload.data() + offset, sizeof(RingUnit));
        } else {
          unit = RingUnit();
          std::memcpy(&unit, payload.data() + offset, payload.size() - offset);
        }
        Memory::write(slots[at], unit);
      }
      ring_.commit(slots.size());
      done += slots.size();
    }
    return true;
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
    const size_t units = message_units(header_.size);
    for (size_t done = 0; done < units;) {
      const auto slots = ring_.peek(units - done);
      for (size_t at = done == 0 ? 1 : 0; at < slots.size(); ++at) {
        const RingUnit unit = Memory::read(slots[at]);
        const size_t offset = (done + at - 1) * sizeof(RingUnit);
        if (header_.size - offset >= sizeof(RingUnit)) [[likely]] {
          std::memcpy(to + offset, &unit, sizeof(RingUnit));
        } else {
          std::memcpy(to + offset, &unit, header_.size - offset);
        }
      }
      ring_.release(slots.size());
      done += slots.size();
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
