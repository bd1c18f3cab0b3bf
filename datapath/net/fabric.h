// Fabric: what a network library must offer so that NetTransport makes a Transport of it.
//
// Purpose: the engine (net_transport.h) does everything that networks share: connections and their handshake over a TCP
//   socket of its own, keys, bounds, deadlines, order, credits, liveness. A back end (UCX, verbs) does what is left:
//   registering memory, joining two ends, moving bytes and small messages between them.
// Links and lanes: a link joins two processes; it has one lane per TransferClass, each with a queue pair or endpoint of its
//   own on every rail, so that bulk never stands in front of latency. The two ends learn of each other by address(), an
//   opaque text of at most kMaxAddressBytes that the engine carries over.
// Thread-safety: none; a Fabric belongs to its transport's thread. Only the descriptor of event_fd() may be watched by others.
// Ownership: the engine owns links, memory and remotes, and destroys them before the fabric. Bytes that a descriptor
//   names belong to the fabric from post() to on_done().
// Exactly once: every signaled descriptor that post() accepted ends in one on_done(), also when its link fails or is
//   closed; an unsignaled one ends with the next signaled one of its lane. After on_closed() nothing of a link is in flight.
// Trust: what peers send (addresses, packed keys, messages) may be nonsense: an error, or the link's failure, never an
//   abort. The engine checks bounds and keys before it posts. What a peer may address it may write at any time, a message
//   that is being looked at among it: copy first, check the copy.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "datapath/memory/buffer.h"
#include "datapath/transport.h"
#include "genie/status.h"

namespace genie::datapath::net {

inline constexpr size_t kLaneCount = 3;  // by TransferClass
inline constexpr size_t kMaxAddressBytes = size_t{16} << 10;
inline constexpr size_t kMaxPackedKeyBytes = 1024;
// Messages that the peer's engine has not consumed yet, per lane; a fabric must have room for them on the receiving side,
// and for kReservedMessages more (returned credits) whatever happens.
inline constexpr uint32_t kMessageWindow = 64;
inline constexpr uint32_t kReservedMessages = 4;

struct FabricInfo {
  std::string_view name;         // "ucx"
  size_t max_message_bytes = 0;  // of send()
  size_t chunk_bytes = 0;        // the size that transfers are cut into; a descriptor is never larger
  uint32_t max_in_flight = 0;    // descriptors per lane that keep it full
  // Whether a write costs this side's CPU a pass over the bytes (sockets, shared memory): for the counters.
  bool copies = false;
  // Whether it costs one where `local` is not registered or its memory is staged: the fabric copies it by way of memory that devices
  // reach.
  bool stages = false;
};

// Memory of this side that the device may touch. Dropping it deregisters (and frees what allocate() made); the engine does
// that when nothing in flight uses it.
class FabricMemory {
 public:
  virtual ~FabricMemory() = default;
  std::byte* data = nullptr;
  size_t size = 0;
  // The CPU can read and write it.
  bool on_host = true;
  // Some device does not reach it: the fabric copies its bytes by way of memory of its own, and no peer can be given a key of it.
  bool staged = false;
};

// A peer's memory, ready for descriptors of one link.
class FabricRemote {
 public:
  virtual ~FabricRemote() = default;
};

// One end of a link.
class FabricLink {
 public:
  virtual ~FabricLink() = default;
  void* owner = nullptr;  // the engine's
  // A message reaches the peer after the bytes of all writes that were posted on its lane before it. Otherwise the engine
  // sends it after their on_done(), which says that the bytes are in the peer's memory. By lane: a fabric may spread the
  // writes of one over several devices. Set by connect() at the latest.
  std::array<bool, kLaneCount> ordered{};
};

// One transfer, prepared: nothing is looked up or allocated when it is posted.
struct Descriptor {
  enum class Op : uint8_t { kWrite, kRead };
  Op op = Op::kWrite;
  bool signaled = true;
  std::byte* local = nullptr;
  size_t size = 0;                       // 1 to chunk_bytes
  const FabricMemory* memory = nullptr;  // that `local` lies in; null where it is not registered: the fabric sees to it
  const FabricRemote* remote = nullptr;
  uint64_t remote_address = 0;
  uint64_t cookie = 0;  // comes back with on_done()
};

// Who is told what poll() found. Calls come from poll() only, never from within post() or close().
class FabricSink {
 public:
  virtual void on_done(uint64_t cookie, Errc result) = 0;
  // The bytes stay there for the time of the call, but the peer may still change them (see Trust).
  virtual void on_message(FabricLink& link, size_t lane, std::span<const std::byte> message) = 0;
  // The link is of no use any more: what is in flight on it is being flushed. The engine answers with close(). kProtocol:
  // the peer did what it must not do.
  virtual void on_failed(FabricLink& link, const Status& why) = 0;
  // The answer to close(), after the last on_done() of the link. The engine destroys it after poll().
  virtual void on_closed(FabricLink& link) = 0;

 protected:
  ~FabricSink() = default;
};

class Fabric {
 public:
  virtual ~Fabric() = default;
  virtual const FabricInfo& info() const noexcept = 0;

  // -- Memory ------------------------------------------------------------------------------------------------------
  // Fresh, zeroed, page-aligned memory that peers may address. `present`: without a page fault later.
  virtual Result<std::unique_ptr<FabricMemory>> allocate(size_t size, bool present) = 0;
  // Somebody else's memory. `shared`: peers may address it, else it is for this side's descriptors only.
  virtual Result<std::unique_ptr<FabricMemory>> register_memory(std::span<std::byte> memory, MemoryKind kind,
                                                                bool shared) = 0;
  // What the peer of `link` needs to address `memory`: at most kMaxPackedKeyBytes; the address goes beside it. The key is
  // good for that link alone where the device can tell links apart, and until the memory is dropped.
  virtual Result<std::vector<std::byte>> export_memory(FabricLink& link, FabricMemory& memory) = 0;
  // A peer's packed key, which may be nonsense (kProtocol).
  virtual Result<std::unique_ptr<FabricRemote>> import_memory(FabricLink& link, std::span<const std::byte> packed_key,
                                                              uint64_t address, size_t size) = 0;

  // -- Links -------------------------------------------------------------------------------------------------------
  // This side's half; then its address goes to the peer, and connect() gets the peer's. `host` is the peer as this side
  // reaches it over IP ("10.0.0.2"), for a fabric that chooses its device by the route.
  virtual Result<std::unique_ptr<FabricLink>> open_link(std::string_view host) = 0;
  virtual Result<std::vector<std::byte>> address(FabricLink& link) = 0;
  // Never waits for the peer. The engine posts on neither side before both have connected.
  virtual Status connect(FabricLink& link, std::span<const std::byte> peer_address) = 0;
  // Ends the link; on_closed() follows. `orderly`: messages that were sent still reach the peer, as long as it takes them;
  // the engine may call again with false when it has waited long enough. Otherwise everything in flight is flushed at once.
  virtual void close(FabricLink& link, bool orderly) = 0;
  // What the link runs over, for the log: "tcp/eth0", "rxe0 port 1 GID 1".
  virtual std::string describe(FabricLink& link) = 0;

  // -- Data --------------------------------------------------------------------------------------------------------
  // Posts a batch, in order, with one doorbell where the device has one. How many it took: fewer when its queue is full.
  virtual size_t post(FabricLink& link, TransferClass lane, std::span<const Descriptor> batch) = 0;
  // A place for one message of up to max_message_bytes that send() posts; empty when there is none now. It is the
  // engine's until the next send() on the lane, which tells nothing when it ends: the fabric takes the place back.
  virtual std::span<std::byte> message_place(FabricLink& link, TransferClass lane) = 0;
  virtual void send(FabricLink& link, TransferClass lane, size_t size) = 0;

  // -- Progress ----------------------------------------------------------------------------------------------------
  // Moves work forward and tells `sink`; true when something moved.
  virtual bool poll(FabricSink& sink) = 0;
  // Readable once poll() may have something, if arm() answered true before. False: poll again first.
  virtual int event_fd() const noexcept = 0;
  virtual bool arm() = 0;
};

}  // namespace genie::datapath::net
