// QueuePair: one reliable connected queue pair and the books of its send queue. Internal to this folder.
//
// Thread-safety: none. Ownership: its rail's. Destroying it is the last resort of a flush: afterwards the device touches
//   no memory on its behalf.
// Books: `posted` and `completed` count work requests; works[] says what each outstanding one was for. A completion of
//   position p says the same of all before it, so that most need none of their own. After an error nothing completes any
//   more: what lies between `completed` and `posted` is unfinished, and flushed once `flushed` has reached `posted`.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "datapath/net/fabric.h"
#include "datapath/verbs/memory.h"

namespace genie::datapath::verbs {

inline constexpr size_t kRailsMax = 4;
inline constexpr uint32_t kSlots = net::kMessageWindow + net::kReservedMessages;
inline constexpr size_t kSlotBytes = size_t{8} << 10;
inline constexpr uint32_t kFlights = 128;
// A peer's notices about rails take no slot.
inline constexpr uint32_t kReceives = kSlots + kRailsMax;
inline constexpr uint32_t kSends = 256;
// Transfers, messages, notices and the last request of an orderly end always find room.
static_assert(kFlights + kSlots + kRailsMax + 1 <= kSends);

inline constexpr uint32_t kReceiveMark = 1U << 31;
inline constexpr uint32_t kPositionMask = kReceiveMark - 1;

struct Link;

// What one outstanding work request was for.
struct Work {
  enum class Kind : uint8_t { kFlight, kMessage, kOther };
  Kind kind = Kind::kOther;
  uint32_t flight = 0;  // its count within the lane
};

// What a peer needs to reach a queue pair, beside its port's address.
struct PairAddress {
  uint32_t number = 0;
  uint32_t first_packet = 0;
};

// Of both ends of a rail.
struct PathOptions {
  ibv_mtu mtu = IBV_MTU_1024;
  Gid peer_gid{};
  uint16_t peer_lid = 0;
  uint8_t reads_in = 1;
  uint8_t reads_out = 1;
  uint32_t gid_index = 0;
};

struct QueuePair {
  Handle<ibv_qp> pair;
  Link* link = nullptr;
  uint8_t rail = 0;
  uint8_t lane = 0;
  uint32_t id = 0;  // in the fabric's table: index and generation
  uint32_t inline_max = 0;
  uint32_t first_packet = 0;

  uint32_t posted = 0;
  uint32_t completed = 0;
  uint32_t flushed = 0;
  uint32_t unsignaled = 0;  // posted since the last one with a completion of its own
  uint32_t receives_out = 0;
  bool broken = false;
  size_t bytes_out = 0;
  std::array<Work, kSends> works;

  Work& work(uint32_t position) noexcept { return works[position % kSends]; }
  // A work request's id: the queue pair, and its position, or the mark of a receive.
  uint64_t send_id() const noexcept { return uint64_t{id} << 32 | (posted & kPositionMask); }
  uint64_t receive_id() const noexcept { return uint64_t{id} << 32 | kReceiveMark; }
  // The count of an outstanding request's position.
  uint32_t position(uint64_t request) const noexcept {
    return completed + ((static_cast<uint32_t>(request) - completed) & kPositionMask);
  }

  Status create(const Domain& domain);
  // INIT: receives may be posted.
  Status initialize(const Device& device);
  // RTR and RTS: ready for the peer, whether the peer is or not.
  Status connect(const Device& device, const PairAddress& peer, const PathOptions& path, const VerbsOptions& options);
  // Everything outstanding is flushed.
  void fail() noexcept;
  // Asks for `count` messages or notices more.
  Status post_receives(uint32_t count);
};

}  // namespace genie::datapath::verbs
