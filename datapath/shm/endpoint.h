// One end of a shared-memory connection: socket, rings, posted operations, regions. Internal to the transport.
//
// Thread-safety: none; endpoints belong to their transport's thread.
//
// Sleeping without lost wake-ups. Each direction has two words in shared memory, `receiver_sleeps` and `sender_sleeps`.
//   A receiver that wants to sleep stores receiver_sleeps = 1, passes a seq_cst fence, looks at the ring once more, and
//   sleeps only if it is empty. A sender shows its message, passes a seq_cst fence, then looks at receiver_sleeps and
//   rings the bell if it is set (clearing it, so that one sleep costs one bell). By the two fences at least one of them
//   sees the other's store: either the receiver finds the message, or the sender finds the flag. The bell is a byte in a
//   socket, so it is not lost when it comes before the sleep. The same holds for sender_sleeps and room in the ring.
//   A peer that never rings only hurts itself: this side's deadlines and hang-up detection don't depend on bells.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "datapath/base/ring_queue.h"
#include "datapath/base/slot_table.h"
#include "datapath/memory/remote_key.h"
#include "datapath/shm/control.h"
#include "datapath/shm/message_ring.h"
#include "datapath/shm/shared_memory.h"
#include "datapath/transport.h"

namespace genie::datapath::shm {

struct Direction {
  alignas(queue::kNoSharing) std::atomic<uint32_t> receiver_sleeps;
  alignas(queue::kNoSharing) std::atomic<uint32_t> sender_sleeps;
  // An SpscRing: the control block, then its units.
  queue::SpscControl<> control;
  RingUnit units[kRingUnits];
};

// The memory that both ends of an endpoint map; all zero at first.
struct EndpointMemory {
  Direction to_listener;
  Direction to_client;
};
// What an idle endpoint keeps resident.
static_assert(sizeof(EndpointMemory) <= (size_t{72} << 10));
static_assert(offsetof(Direction, units) == offsetof(Direction, control) + sizeof(queue::SpscControl<>));

struct PendingOp {
  Opcode opcode = Opcode::kSend;
  uint32_t immediate = 0;
  uint32_t import_index = UINT32_MAX;
  uint32_t import_generation = 0;
  uint64_t user_data = 0;
  uint64_t deadline_ns = 0;
  std::byte* remote = nullptr;
  size_t done = 0;
  Buffer buffer;
};

// On the listening side: one region of this endpoint, whoever asked for it. The slot's index and generation are in the
// key, and so is the nonce, which cannot be guessed.
struct SharedRegion {
  std::array<std::byte, 16> nonce{};
  size_t size = 0;
  bool of_client = false;
  FileDescriptor fd;  // of the client's regions; the listener's own keep it in LocalRegion
  MemoryKey local;    // of the listener's own
};

// Memory that the peer has handed over and nobody has taken yet.
struct HandedOver {
  KeyFields key;
  FileDescriptor fd;
  Errc refused = Errc::kOk;  // beyond this side's limits: there is no descriptor then
};

struct Reply {
  ControlMessage message;
  FileDescriptor fd;
};

inline constexpr size_t kClassCount = 3;

enum class EndpointState : uint8_t {
  kHandshake,  // accepted, no hello yet
  kOpen,
  kDraining,  // the peer has gone; what it had sent is still being delivered
};

struct Endpoint {
  EndpointId id;
  EndpointState state = EndpointState::kHandshake;
  bool listener_side = false;
  bool scanned = false;         // in the transport's list of endpoints that poll() looks at
  bool wants_writable = false;  // epoll is asked for EPOLLOUT
  uint32_t idle_scans = 0;
  uint64_t handshake_deadline_ns = 0;

  ControlChannel channel;
  std::vector<std::byte> token;

  SharedMapping memory;
  Direction* outgoing = nullptr;
  Direction* incoming = nullptr;
  std::optional<MessageSender<>> sender;
  std::optional<MessageReceiver<>> receiver;

  std::array<RingQueue<PendingOp>, kClassCount> pending;

  // Listening side.
  SlotTable<SharedRegion> shared;
  size_t shared_regions = 0;
  size_t shared_bytes = 0;

  RingQueue<HandedOver> handed_over;
  uint32_t next_hand_over = 0;

  // Connecting side.
  uint64_t next_request = 1;
  uint64_t awaited_request = 0;
  std::optional<Reply> reply;

  bool has_pending() const noexcept { return !(pending[0].empty() && pending[1].empty() && pending[2].empty()); }
};

// Memory that this side allocated.
struct LocalRegion {
  SharedMapping mapping;
  FileDescriptor fd;
  size_t size = 0;
  EndpointId endpoint;
  RemoteKey remote;
  uint32_t users = 0;     // posted operations whose buffer carries the key
  bool prepared = false;  // not shared: the peer does not know of it
};

// A region of the peer, mapped here.
struct Import {
  SharedMapping mapping;
  size_t size = 0;
  EndpointId endpoint;
  KeyFields key;
  bool revoked = false;
  uint32_t users = 0;  // posted operations that write or read it
};

}  // namespace genie::datapath::shm
