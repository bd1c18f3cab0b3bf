// Link: one end of a connection between two processes over all their rails. Internal to this folder.
//
// Thread-safety: none. Ownership: the engine owns the link; the link owns its queue pairs, rings and staging memory.
// Messages: each lane has a ring of kSlots places at both ends. A message is copied into the next place of the sender's
//   ring and written into the same place of the receiver's, with its number as immediate. The engine's credits say that the
//   receiver's place is free; the sender's is free when the write was acknowledged. So unacknowledged messages are still
//   there when their rail fails, and are sent again on another.
// A rail that fails (failover.cc): each side flushes its queue pairs of the rail, then tells the other over a rail that is
//   up how many messages it had received there. Only when both have done so nothing is on its way any more: then what did
//   not end is posted again. Transfers may be repeated, since their bytes are the same; messages are counted.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "datapath/net/fabric.h"
#include "datapath/verbs/queue_pair.h"

namespace genie::datapath::verbs {

class VerbsFabric;

enum class RailState : uint8_t {
  kUp,
  kFlushing,  // its queue pairs are in the error state
  kFlushed,   // nothing of this side is on its way; the peer is told and awaited
  kDown
};

struct Rail {
  Device* device = nullptr;
  GidEntry gid;
  std::shared_ptr<Domain> domain;
  std::array<std::unique_ptr<QueuePair>, net::kLaneCount> pairs;
  uint32_t ring_key = 0;       // of this side's rings
  uint32_t peer_ring_key = 0;  // of the peer's
  uint32_t own_index = 0;      // the rail's place in this side's address and packed keys
  uint32_t peer_index = 0;     // and in the peer's
  std::string peer_text;

  RailState state = RailState::kUp;
  bool told = false;       // the peer knows that this side has flushed
  uint8_t told_over = 0;   // the rail that carried it
  bool peer_told = false;  // and the other way round
  std::array<uint8_t, net::kLaneCount> peer_received{};
  uint64_t failing_since_ns = 0;
};

struct Flight {
  net::Descriptor descriptor;
  std::byte* staged = nullptr;  // where its bytes lie instead, where devices do not reach `local`
  uint8_t rail = 0;
  bool done = false;
  Errc result = Errc::kOk;
};

struct Lane {
  std::array<Flight, kFlights> flights;
  uint32_t begin = 0;  // counts: the oldest flight that was not reported, and the next
  uint32_t end = 0;
  Errc carried = Errc::kOk;  // of unsignaled flights since the last signaled one

  uint8_t home = 0;  // the rail of its messages
  std::byte* outgoing = nullptr;
  std::byte* incoming = nullptr;
  uint64_t peer_incoming = 0;
  std::array<uint16_t, kSlots> sizes{};
  uint32_t sent = 0;  // counts
  uint32_t acknowledged = 0;
  uint32_t received = 0;
  uint32_t next_out = 0;  // places
  uint32_t next_in = 0;

  std::unique_ptr<VerbsMemory> staging;
  std::vector<std::byte*> staging_free;

  Flight& flight(uint32_t count) noexcept { return flights[count % kFlights]; }
};

enum class LinkState : uint8_t {
  kNew,  // not connected
  kOpen,
  kFailed,    // on_failed() is due, or was called; waits for close()
  kDraining,  // an orderly end: what was posted is still being carried out
  kCut,       // its queue pairs are gone; on_closed() is due
  kClosed
};

struct Link final : net::FabricLink {
  explicit Link(VerbsFabric& owner) noexcept : fabric(owner) {}
  ~Link() override;

  VerbsFabric& fabric;
  LinkState state = LinkState::kNew;
  bool dirty = false;    // something is to be reported
  bool failing = false;  // a rail is on its way down
  bool left = false;
  uint64_t nonce = 0;
  Status why;
  bool failure_told = false;
  std::vector<Rail> rails;
  std::array<Lane, net::kLaneCount> lanes;
  std::unique_ptr<VerbsMemory> rings;

  bool alive() const noexcept { return state == LinkState::kOpen || state == LinkState::kDraining; }
};

// A peer's memory: its keys, by this side's rails.
struct Remote final : net::FabricRemote {
  std::array<uint32_t, kRailsMax> keys{};
};

// The immediate of a message is its number within the lane; the highest bit marks a notice about a rail, which is all in
// its 32 bits: rail, and for each lane the low bits of the number of messages received.
inline constexpr uint32_t kNoticeBit = 1U << 31;
inline constexpr uint32_t kNumberMask = kNoticeBit - 1;
static_assert(kSlots < 128, "the low 8 bits of a count tell it from all that it may be");

uint32_t make_notice(uint32_t rail, const std::array<Lane, net::kLaneCount>& lanes) noexcept;

}  // namespace genie::datapath::verbs
