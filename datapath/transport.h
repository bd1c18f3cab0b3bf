// Transport: the one interface through which bytes cross between two processes.
//
// Purpose: one-sided writes and reads into registered memory of a peer, small messages, polled completions. Back ends:
//   shm, ucx, fake (later verbs, dpdk). One conformance suite holds for all.
// Threading: a Transport and everything made from it belong to ONE thread at a time, its poller (the owner may change
//   hands under the caller's lock). Only wake() may be called from any thread.
// Ownership: posting moves the Buffer in; exactly one Completion moves it out, with success, error or timeout.
//   A post that returns anything but OK (kAgain is back-pressure, not an error) leaves the buffer with the caller.
// Deadlines: every posted operation has one. A deadline that passes fails the operation's endpoint; the buffer comes back
//   after that flush.
// Trust: nothing that a peer sends or writes may abort this process; keys are unguessable and bounded to a region.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "datapath/base/clock.h"
#include "datapath/memory/buffer.h"
#include "genie/status.h"

namespace genie::datapath {

// What the plan says the bytes are for; bulk yields to latency at chunk boundaries.
enum class TransferClass : uint8_t { kControl, kLatency, kBulk };

struct EndpointId {
  uint32_t index = UINT32_MAX;
  uint32_t generation = 0;
  bool valid() const noexcept { return index != UINT32_MAX; }
  friend bool operator==(EndpointId, EndpointId) = default;
};

// Opaque to everybody but the transport that made it: exchanged over the control plane or in a message.
struct RemoteKey {
  std::array<std::byte, 32> bytes{};
};

// Memory that a peer may address, made by allocate() or register_memory().
struct Region {
  std::byte* data = nullptr;
  size_t size = 0;
  MemoryKey key;     // local handle
  RemoteKey remote;  // what the peer needs to address it
};

// Memory that a peer has handed over, made usable here by take().
struct Taken {
  Buffer memory;  // of this process alone: what is written here is seen by nobody else
  // Nobody can write the bytes that were handed over any more. False where that could not be made sure (a peer that keeps
  // a way to write): whoever relies on the bytes copies them first.
  bool final = false;
  // Writing it costs what writing memory costs. False: the first write to a page copies it.
  bool writable = false;
  size_t resident_bytes = 0;  // what the memory costs this machine
};

// A peer's region, made usable here by import_region().
struct RemoteRegion {
  uint32_t index = UINT32_MAX;
  uint32_t generation = 0;
  size_t size = 0;
  // Not null where the peer's memory is directly addressable (shm): the write itself is then a plain store.
  std::byte* mapped = nullptr;
};

enum class Opcode : uint8_t {
  kWrite,         // our write finished: `buffer` comes back
  kWriteNotify,   // our write_with_notify finished: `buffer` comes back
  kRead,          // our read finished: `buffer` comes back, filled on success
  kSend,          // our send finished: `buffer` comes back
  kReceive,       // a peer's message: `buffer` views it until dropped; `immediate` is the sender's tag
  kNotified,      // a peer's write_with_notify landed: `immediate` is its tag
  kConnected,     // an endpoint was accepted (listener side)
  kDisconnected,  // an endpoint ended; comes once, after the completions of everything posted on it
};

struct Completion {
  Opcode opcode = Opcode::kSend;
  Errc result = Errc::kOk;
  uint32_t immediate = 0;
  EndpointId endpoint;
  uint64_t user_data = 0;
  Buffer buffer;
};

struct PostOptions {
  TransferClass transfer_class = TransferClass::kLatency;
  Deadline deadline = Deadline::after_ms(30'000);
  uint64_t user_data = 0;  // comes back in the completion
};

struct Capabilities {
  std::string_view name;
  bool maps_remote_memory = false;    // RemoteRegion::mapped is set
  bool registers_any_memory = false;  // register_memory() works on memory that allocate() did not make
  bool publishes_memory = false;      // publish() works, on the listening side
  // The peer's transfers move on, and this side counts as alive, only while this side polls: an owner that does not poll
  // all the time sleeps on arm() in between.
  bool needs_polling = false;
  size_t max_send_bytes = 0;  // largest small message
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual const Capabilities& capabilities() const noexcept = 0;

  // -- Connections -------------------------------------------------------------------------------------------------
  // Starts accepting; afterwards address() is what a peer passes to connect().
  virtual Status listen(std::string_view where) = 0;
  virtual std::string address() const = 0;
  // `token` reaches the listener with kConnected (endpoint_token), so that the control plane can match the two.
  virtual Result<EndpointId> connect(std::string_view address, std::span<const std::byte> token, Deadline deadline) = 0;
  virtual std::span<const std::byte> endpoint_token(EndpointId endpoint) const = 0;
  // Fails what is pending on it (kCancelled), then reports kDisconnected; the peer sees kDisconnected too, after what was
  // sent before. The id is stale from then on.
  virtual Status close(EndpointId endpoint) = 0;

  // -- Memory ------------------------------------------------------------------------------------------------------
  // Memory that the peer of `endpoint` may write and read once it has imported the key. Zeroed, pre-faulted.
  virtual Result<Region> allocate(EndpointId endpoint, size_t size, Deadline deadline) = 0;
  // Memory of this side that the peer may read but never write: its import is private, so that what it writes there is its
  // own, page by page, while all other pages show what this side writes. Zeroed, not present yet; released like any region.
  // kUnsupported without Capabilities::publishes_memory.
  virtual Result<Region> publish(EndpointId endpoint, size_t size) = 0;
  // The caller's own memory, for operations of this side and of peers; messages leave from host memory alone. GPU memory that some device
  // does not reach is copied by way of host memory (the log says so): then it is for writes and reads of this side, and `remote` is
  // the invalid key.
  virtual Result<Region> register_memory(std::span<std::byte> memory, MemoryKind kind) = 0;
  // Frees (or unregisters) a region. kBusy while posted operations use it; kStale for an old key.
  virtual Status release(MemoryKey key) = 0;
  // Makes a peer's region addressable; forged or stale keys: kPermission or kStale.
  virtual Result<RemoteRegion> import_region(EndpointId endpoint, const RemoteKey& key) = 0;
  virtual Status drop_import(const RemoteRegion& region) = 0;
  // Regions and imports stay valid memory when their endpoint ends, until they are released, handed over or dropped.

  // -- Handing memory over: bytes that become the peer's for good, without a copy where the transport can -----------------
  // Memory that the peer does not reach before it is handed over. Zeroed; nothing of it is present yet, so that a tail that
  // stays unused costs none.
  virtual Result<Region> prepare(EndpointId endpoint, size_t size) = 0;
  // Gives the first `size` bytes of prepared memory to the peer: it is gone from this side, and the local key stale. The
  // peer can take it once a message that is sent afterwards has arrived. Blocks at most while the peer's control channel
  // is full.
  virtual Result<RemoteKey> hand_over(MemoryKey key, size_t size, Deadline deadline) = 0;
  // Makes what the peer has handed over this side's own; a key is good once. kNotFound for one that was not handed over,
  // kQuotaExceeded when it went beyond this side's limits.
  virtual Result<Taken> take(EndpointId endpoint, const RemoteKey& key) = 0;

  // -- Data (kAgain: nothing was posted, poll and try again) -----------------------------------------------------------
  // Order: per endpoint and class, the peer sees messages and notifications as they were posted, each after the bytes of
  // the writes posted before it. Between classes and endpoints there is no order. A completion says that the buffer is
  // free again; of a message, not that the peer has read it.
  virtual Status write(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                       const PostOptions& options) = 0;
  // Like write, and the peer gets kNotified with `immediate` after the bytes are visible.
  virtual Status write_with_notify(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                                   uint32_t immediate, const PostOptions& options) = 0;
  virtual Status read(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                      const PostOptions& options) = 0;
  // A small message (up to max_send_bytes).
  virtual Status send(EndpointId endpoint, Buffer& message, uint32_t immediate, const PostOptions& options) = 0;

  // -- Progress ----------------------------------------------------------------------------------------------------
  // Moves work forward; fills up to out.size() completions and returns how many.
  virtual size_t poll(std::span<Completion> out) = 0;
  // Sleeps until poll() may have something, wake() was called or the time is over. Adaptive pollers call it after spinning.
  virtual void wait(uint64_t timeout_ns) = 0;
  // From any thread: makes a wait() return.
  virtual void wake() = 0;
  // With needs_polling: a descriptor that becomes readable once poll() may have something, for somebody who sleeps on it
  // without holding the transport (and polls every second all the same). -1: poll at once.
  virtual int arm() { return -1; }

  // Bytes that the CPU copied on behalf of callers, in and out: honest counters, never reset.
  struct Counters {
    uint64_t bytes_copied_tx = 0;
    uint64_t bytes_copied_rx = 0;
    uint64_t messages_sent = 0;
    uint64_t messages_received = 0;
  };
  virtual Counters counters() const = 0;
};

}  // namespace genie::datapath
