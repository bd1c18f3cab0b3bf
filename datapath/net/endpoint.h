// One end of a network connection: socket, lanes, posted operations, what both sides know of each other's memory. Internal.
//
// Thread-safety: none; endpoints belong to their transport's thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "datapath/base/ring_queue.h"
#include "datapath/base/slot_table.h"
#include "datapath/memory/remote_key.h"
#include "datapath/net/control_socket.h"
#include "datapath/net/fabric.h"
#include "datapath/transport.h"

namespace genie::datapath::net {

enum class MessageKind : uint16_t { kMessage = 1, kNotify, kCredits };

// In front of every message on a lane.
struct MessageHeader {
  MessageKind kind = MessageKind::kMessage;
  uint16_t reserved = 0;
  uint32_t immediate = 0;
  uint32_t after = 0;     // frames that were sent before it
  uint32_t consumed = 0;  // messages of this lane that the sender has handed to its user: the credits
};
static_assert(sizeof(MessageHeader) == 16);

// Descriptors of pulls are told from those of operations by it; no table has so many slots.
inline constexpr uint64_t kPullBit = uint64_t{1} << 31;
inline uint64_t cookie_of(SlotId slot) noexcept { return uint64_t{slot.generation} << 32 | slot.index; }
inline SlotId slot_of(uint64_t cookie) noexcept {
  return {static_cast<uint32_t>(cookie), static_cast<uint32_t>(cookie >> 32)};
}

// A posted operation.
struct Op {
  Opcode opcode = Opcode::kSend;
  Errc result = Errc::kOk;
  uint32_t immediate = 0;
  uint32_t in_flight = 0;  // descriptors
  EndpointId endpoint;
  uint32_t lane = 0;
  uint32_t import_index = UINT32_MAX;
  uint32_t import_generation = 0;
  uint64_t user_data = 0;
  uint64_t deadline_ns = 0;
  const FabricMemory* memory = nullptr;
  const FabricRemote* remote = nullptr;
  uint64_t remote_address = 0;
  size_t posted = 0;
  Buffer buffer;

  bool is_transfer() const noexcept { return opcode != Opcode::kSend; }
  bool all_posted() const noexcept { return !is_transfer() || posted == buffer.size(); }
};

// Memory that the peer hands over, on its way here. Its chunks may be in flight for longer than its endpoint lives.
struct Pull {
  EndpointId endpoint;
  uint32_t frame = 0;  // its number among the peer's frames
  KeyFields key;
  uint64_t address = 0;
  std::unique_ptr<FabricMemory> local;
  std::unique_ptr<FabricRemote> remote;
  size_t posted = 0;
  uint32_t in_flight = 0;
  bool failed = false;
  uint64_t moved_ns = 0;
  Buffer memory;

  bool done() const noexcept { return in_flight == 0 && posted == memory.size(); }
};

// A message or notification that waits for its turn to be delivered.
struct Arrival {
  MessageKind kind = MessageKind::kMessage;
  uint32_t immediate = 0;
  uint32_t after = 0;
  Buffer buffer;
};

struct Lane {
  RingQueue<SlotId> queue;  // operations, in posting order
  size_t posted = 0;        // of them, from the front: all their bytes are posted
  size_t messaged = 0;      // of these, from the front: their message has left, or they have none
  uint32_t in_flight = 0;   // descriptors
  uint32_t sent = 0;        // messages, and how many of them the peer has consumed
  uint32_t peer_consumed = 0;
  uint32_t received = 0;
  uint32_t consumed = 0;
  uint32_t told = 0;  // of `consumed`
  RingQueue<Arrival> arrivals;
};

// What the peer told of a region of its.
struct Announced {
  KeyFields key;
  uint64_t address = 0;
  bool revoked = false;
  std::vector<std::byte> packed_key;
};

// Memory that the peer has handed over and nobody has taken yet.
struct HandedOver {
  KeyFields key;
  Errc refused = Errc::kOk;
  Buffer memory;
};

// Memory of this side that is no longer its user's but may still be touched by the peer.
struct Leaving {
  KeyFields key;
  std::unique_ptr<FabricMemory> memory;
};

enum class EndpointState : uint8_t {
  kHandshake,  // accepted, no hello yet
  kOpen,
  kDraining,   // the peer has gone; what it had sent is still being delivered
  kEnding,     // no user sees it any more, but its last operations are in flight
  kLingering,  // kDisconnected was reported; the link is being closed
};

struct Endpoint {
  EndpointId id;
  EndpointState state = EndpointState::kHandshake;
  bool listener_side = false;
  bool lanes_ready = false;  // the peer's lanes are connected
  bool listed = false;       // among those that poll() looks at
  bool wants_writable = false;
  bool said_goodbye = false;
  bool described = false;    // the log says what its link runs over
  bool frames_left = false;  // read from the socket and not looked at yet
  bool link_closing = false;
  bool link_forced = false;
  bool link_closed = false;
  Errc cause = Errc::kOk;
  Errc flushed = Errc::kOk;
  std::optional<Errc> broken;  // found where the endpoint could not be ended at once
  uint64_t deadline_ns = 0;    // of the handshake, of draining, of lingering
  uint64_t heard_ns = 0;
  uint64_t pinged_ns = 0;

  ControlSocket socket;
  std::unique_ptr<FabricLink> link;
  std::vector<std::byte> token;
  std::string peer;  // for the log

  std::array<Lane, kLaneCount> lanes;
  std::optional<std::array<uint32_t, kLaneCount>> farewell;  // messages that the peer said it has sent
  uint32_t frames_sent = 0;
  uint32_t frames_received = 0;
  uint32_t ops = 0;  // in its lanes

  std::unordered_map<uint32_t, Announced> announced;
  RingQueue<SlotId> pulls;
  RingQueue<HandedOver> handed_over;
  std::vector<Leaving> handed_away;  // by this side, until the peer has it
  std::vector<Leaving> revoked;      // regions of this side, until the peer's last operation on them has ended
  uint32_t next_hand_over = 0;
  size_t shared_regions = 0;
  size_t shared_bytes = 0;

  // Connecting side.
  uint64_t next_request = 1;
  uint64_t awaited_request = 0;
  std::optional<Errc> reply;

  bool usable() const noexcept { return state == EndpointState::kOpen; }
  bool visible() const noexcept { return state == EndpointState::kOpen || state == EndpointState::kDraining; }
};

// Memory that this side made or registered.
struct LocalRegion {
  std::unique_ptr<FabricMemory> memory;
  size_t size = 0;
  EndpointId endpoint;  // not valid for registered memory, which every endpoint may address
  KeyFields key;
  uint32_t users = 0;  // posted operations whose buffer carries the key
  bool prepared = false;
};

// A region of the peer, ready to be written and read.
struct Import {
  std::unique_ptr<FabricRemote> remote;
  uint64_t address = 0;
  EndpointId endpoint;
  KeyFields key;
  bool revoked = false;
  uint32_t users = 0;
};

}  // namespace genie::datapath::net
