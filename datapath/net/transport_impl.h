// NetTransport: the implementation behind make_net_transport(). Internal to this folder.
//
// One source per event: connect.cc (listen, connect, handshake), ending.cc (the end of an endpoint, liveness), frames.cc
// (what comes on the socket), regions.cc (memory), hand_over.cc (memory that changes sides), post.cc (operations and
// messages), progress.cc (poll, wait).
#pragma once

#include <array>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "datapath/memory/receive_pool.h"
#include "datapath/net/endpoint.h"
#include "datapath/net/net_transport.h"

namespace genie::datapath::net {

// Values of epoll_data that no endpoint has.
inline constexpr uint64_t kWakeTag = UINT64_MAX;
inline constexpr uint64_t kListenerTag = UINT64_MAX - 1;
inline constexpr uint64_t kFabricTag = UINT64_MAX - 2;

class NetTransport final : public Transport, private FabricSink {
 public:
  NetTransport(std::unique_ptr<Fabric> fabric, const NetOptions& options);
  ~NetTransport() override;

  const Capabilities& capabilities() const noexcept override { return capabilities_; }

  Status listen(std::string_view where) override;
  std::string address() const override { return address_; }
  Result<EndpointId> connect(std::string_view address, std::span<const std::byte> token, Deadline deadline) override;
  std::span<const std::byte> endpoint_token(EndpointId endpoint) const override;
  Status close(EndpointId endpoint) override;

  Result<Region> allocate(EndpointId endpoint, size_t size, Deadline deadline) override;
  Result<Region> publish(EndpointId, size_t) override {
    return Status(Errc::kUnsupported, "memory is not published over a network; write it to the peer");
  }
  Result<Region> register_memory(std::span<std::byte> memory, MemoryKind kind) override;
  Status release(MemoryKey key) override;
  Result<RemoteRegion> import_region(EndpointId endpoint, const RemoteKey& key) override;
  Status drop_import(const RemoteRegion& region) override;
  Result<Region> prepare(EndpointId endpoint, size_t size) override;
  Result<RemoteKey> hand_over(MemoryKey key, size_t size, Deadline deadline) override;
  Result<Taken> take(EndpointId endpoint, const RemoteKey& key) override;

  Status write(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
               const PostOptions& options) override;
  Status write_with_notify(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
                           uint32_t immediate, const PostOptions& options) override;
  Status read(EndpointId endpoint, Buffer& local, const RemoteRegion& remote, size_t offset,
              const PostOptions& options) override;
  Status send(EndpointId endpoint, Buffer& message, uint32_t immediate, const PostOptions& options) override;

  size_t poll(std::span<Completion> out) override;
  void wait(uint64_t timeout_ns) override;
  void wake() override;
  int arm() override;
  Counters counters() const override { return counters_; }

 private:
  // A peer address that fails again and again is asked less and less often.
  struct Quarantine {
    uint32_t failures = 0;
    uint64_t until_ns = 0;
  };

  struct Spare {
    EndpointId endpoint;
    std::unique_ptr<FabricMemory> memory;
    size_t dirty = 0;  // bytes from its beginning that are not zero
  };

  Endpoint* find(EndpointId id) noexcept { return endpoints_.find(id.index, id.generation); }
  Endpoint* usable(EndpointId id) noexcept {
    Endpoint* const endpoint = find(id);
    return endpoint != nullptr && endpoint->usable() ? endpoint : nullptr;
  }

  // -- connect.cc
  Endpoint& add_endpoint(ControlSocket socket, bool listener_side);
  Result<EndpointId> handshake(std::string_view address, std::span<const std::byte> token, Deadline deadline);
  void accept_all();
  void handle_hello(Endpoint& endpoint, const Frame& hello, std::span<const std::byte> payload);
  Status admit(Endpoint& endpoint, const Frame& hello, std::span<const std::byte> payload,
               std::vector<std::byte>& own_address);
  void watch(Endpoint& endpoint, bool writable);
  Status check_quarantine(const std::string& address) const;
  void note_failure(const std::string& address);

  // -- ending.cc
  // The one way in which an endpoint ends: its id is stale for users; what is not in flight comes back at once (late
  // operations as timed out, the others with `flushed`), the rest after its flush, then kDisconnected with `cause`.
  void end(Endpoint& endpoint, Errc cause, Errc flushed, bool orderly = false);
  void start_draining(Endpoint& endpoint);
  void close_link(Endpoint& endpoint, bool orderly);
  // Moves an ending on; the endpoint may be gone afterwards.
  void settle(Endpoint& endpoint);
  void forget(Endpoint& endpoint);
  void expire();
  void tend();
  void tend_one(Endpoint& endpoint);

  // -- frames.cc
  void service(Endpoint& endpoint);
  bool handle(Endpoint& endpoint, const Frame& frame, std::span<const std::byte> payload);
  bool handle_from_client(Endpoint& endpoint, const Frame& frame);
  void transmit(Endpoint& endpoint, const Frame& frame, std::span<const std::byte> payload = {});
  Status call(EndpointId endpoint, Frame frame, std::span<const std::byte> payload, Deadline deadline);
  bool accept_announcement(Endpoint& endpoint, const Frame& frame, std::span<const std::byte> payload);

  // -- regions.cc
  Status check_quota(const Endpoint& endpoint, size_t size) const;
  void charge(Endpoint& endpoint, size_t size);
  void refund(Endpoint& endpoint, size_t size);
  Result<const Announced*> resolve(const Endpoint& endpoint, const RemoteKey& key) const;
  void announce(Endpoint& endpoint, const LocalRegion& region);
  void on_revoke(Endpoint& endpoint, const KeyFields& key);
  void confirm_revoked(Endpoint& endpoint, const KeyFields& key);
  void on_unused_import(Import& import);
  Result<Region> add_region(EndpointId endpoint, std::unique_ptr<FabricMemory> memory, size_t size);

  // -- hand_over.cc
  bool accept_hand_over(Endpoint& endpoint, const Frame& frame, std::span<const std::byte> payload);
  Status start_pull(Endpoint& endpoint, const Frame& frame, std::span<const std::byte> packed_key);
  void advance_pulls(Endpoint& endpoint);
  void finish_pulls(Endpoint& endpoint);
  void drop_pulls(Endpoint& endpoint);
  void on_pull_done(uint64_t cookie, Errc result);
  void keep_spare(EndpointId id, std::unique_ptr<FabricMemory> memory, size_t dirty);
  std::unique_ptr<FabricMemory> take_spare(EndpointId id, size_t size);
  // Frames of the peer that have been carried out.
  uint32_t frames_done(Endpoint& endpoint);

  // -- post.cc
  Status post_transfer(EndpointId id, Buffer& local, const RemoteRegion& remote, size_t offset, Opcode opcode,
                       uint32_t immediate, const PostOptions& options);
  Op* enqueue(Endpoint& endpoint, Opcode opcode, uint32_t immediate, Buffer& buffer, const PostOptions& options);
  void launch(Endpoint& endpoint, size_t lane);
  void advance(Endpoint& endpoint);
  void post_transfers(Endpoint& endpoint, size_t lane);
  size_t describe_transfers(Lane& lane);
  void finish_front(Endpoint& endpoint, size_t lane);
  void send_messages(Endpoint& endpoint, size_t lane);
  bool send_message(Endpoint& endpoint, size_t lane, MessageKind kind, uint32_t immediate,
                    std::span<const std::byte> payload);
  void return_credits(Endpoint& endpoint);
  void complete(SlotId slot, Errc result);
  void release_users(const Op& op);
  LocalRegion* region_around(const Buffer& buffer);

  // -- progress.cc
  void on_done(uint64_t cookie, Errc result) override;
  void on_message(FabricLink& link, size_t lane, std::span<const std::byte> message) override;
  void on_failed(FabricLink& link, const Status& why) override;
  void on_closed(FabricLink& link) override;
  void look_after(Endpoint& endpoint);
  void deliver(Endpoint& endpoint, std::span<Completion> out, size_t& filled);
  bool deliverable(Endpoint& endpoint, Arrival& arrival);
  void service_sockets(uint64_t timeout_ns);
  bool has_work();
  void list(Endpoint& endpoint);
  uint64_t next_event_ns() const;

  NetOptions options_;
  const std::unique_ptr<Fabric> fabric_;  // outlives what was made from it
  const FabricInfo& info_;
  Capabilities capabilities_;
  Counters counters_;

  FileDescriptor epoll_;
  FileDescriptor wake_fd_;
  FileDescriptor listener_;
  std::string address_;

  SlotTable<Endpoint> endpoints_;
  SlotTable<LocalRegion> regions_;
  SlotTable<Import> imports_;
  SlotTable<Op> ops_;
  SlotTable<Pull> pulls_;
  std::vector<EndpointId> listed_;
  std::vector<EndpointId> looking_;  // the list that poll() goes through
  std::unordered_map<std::string, Quarantine> quarantine_;

  std::vector<Spare> spares_;
  size_t open_endpoints_ = 0;  // accepted, past their handshake
  size_t handshakes_ = 0;
  size_t shared_regions_ = 0;
  size_t shared_bytes_ = 0;

  // What post_transfers() hands to the fabric.
  static constexpr size_t kBatch = 16;
  struct Batch {
    std::array<Descriptor, kBatch> descriptors;
    std::array<Op*, kBatch> owners{};
  };
  Batch batch_;
  RingQueue<Completion> completions_;
  ReceivePool pool_;
  uint64_t earliest_deadline_ns_ = UINT64_MAX;
  uint64_t now_ = 0;
  uint64_t next_tend_ns_ = 0;
  uint64_t last_tend_ns_ = 0;
  uint64_t next_sockets_ns_ = 0;
  bool socket_wanted_ = false;    // a message waits for a frame
  bool message_came_ = false;     // in this poll()
  bool something_ended_ = false;  // in it, too
};

}  // namespace genie::datapath::net
