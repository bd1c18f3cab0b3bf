// ShmTransport: the implementation behind make_shm_transport(). Internal to this folder.
//
// One source per event: connect.cc (listen, connect, handshake, the end of an endpoint), regions.cc (memory),
// hand_over.cc (memory that changes sides), post.cc (operations), progress.cc (poll, wait), control messages in requests.cc.
#pragma once

#include <atomic>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "datapath/memory/receive_pool.h"
#include "datapath/shm/endpoint.h"
#include "datapath/shm/shm_transport.h"

namespace genie::datapath::shm {

// Values of epoll_data that no endpoint has.
inline constexpr uint64_t kWakeTag = UINT64_MAX;
inline constexpr uint64_t kListenerTag = UINT64_MAX - 1;

class ShmTransport final : public Transport {
 public:
  explicit ShmTransport(const ShmOptions& options);
  ~ShmTransport() override;

  const Capabilities& capabilities() const noexcept override { return capabilities_; }

  Status listen(std::string_view where) override;
  std::string address() const override;
  Result<EndpointId> connect(std::string_view address, std::span<const std::byte> token, Deadline deadline) override;
  std::span<const std::byte> endpoint_token(EndpointId endpoint) const override;
  Status close(EndpointId endpoint) override;

  Result<Region> allocate(EndpointId endpoint, size_t size, Deadline deadline) override;
  Result<Region> publish(EndpointId endpoint, size_t size) override;
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
  Counters counters() const override { return counters_; }

 private:
  Endpoint* find(EndpointId id) noexcept { return endpoints_.find(id.index, id.generation); }

  // -- connect.cc
  Endpoint& add_endpoint(ControlChannel channel, bool listener_side);
  void accept_all();
  void handle_hello(Endpoint& endpoint, const Incoming& incoming);
  Status admit(const Endpoint& endpoint, const ControlMessage& hello) const;
  Status open_rings(Endpoint& endpoint, int fd, bool listener_side);
  void watch(Endpoint& endpoint, bool writable);
  void unwatch(Endpoint& endpoint);
  // The one way in which an endpoint ends: everything posted comes back (an expired operation as timed out, the others
  // with `flushed`), then kDisconnected with `cause`. The endpoint's id is stale afterwards.
  void end(Endpoint& endpoint, Errc cause, Errc flushed);

  // -- requests.cc
  void service(Endpoint& endpoint, bool thorough = false);
  bool handle(Endpoint& endpoint, Incoming& incoming);
  bool handle_from_client(Endpoint& endpoint, const ControlMessage& message);
  bool handle_from_listener(Endpoint& endpoint, Incoming& incoming);
  void allocate_for(Endpoint& endpoint, const ControlMessage& message);
  void reply_import(Endpoint& endpoint, const ControlMessage& message);
  void reply(Endpoint& endpoint, ControlType type, uint64_t request, Errc status, const RemoteKey& key = {},
             int fd = -1);
  void transmit(Endpoint& endpoint, const ControlMessage& message, int fd = -1);
  Status send_all(Endpoint& endpoint, Deadline deadline);
  Result<Reply> call(Endpoint& endpoint, ControlMessage message, Deadline deadline);

  // -- regions.cc
  Status check_quota(const Endpoint& endpoint, size_t size) const;
  void charge(Endpoint& endpoint, size_t size);
  void refund(Endpoint& endpoint, size_t size);
  Result<SharedRegion*> resolve(Endpoint& endpoint, const RemoteKey& key);
  RemoteKey add_shared(Endpoint& endpoint, SharedRegion region);
  void drop_shared(Endpoint& endpoint, const KeyFields& key);
  void withdraw(EndpointId endpoint, const RemoteKey& key);
  void revoke_imports(EndpointId endpoint, const KeyFields& key);
  Result<Region> allocate_here(Endpoint& endpoint, size_t size, bool published = false);
  Result<Region> allocate_there(Endpoint& endpoint, size_t size, Deadline deadline);
  Result<Region> add_region(EndpointId endpoint, FileDescriptor fd, const RemoteKey& key, size_t size,
                            bool published = false);
  Result<SharedMapping> import_own(Endpoint& endpoint, const RemoteKey& key);
  Result<SharedMapping> import_theirs(Endpoint& endpoint, const RemoteKey& key);

  // -- hand_over.cc
  bool accept_hand_over(Endpoint& endpoint, Incoming& incoming);
  std::optional<HandedOver> find_handed_over(Endpoint& endpoint, const RemoteKey& key);

  // -- post.cc
  Status post_transfer(EndpointId id, Buffer& local, const RemoteRegion& remote, size_t offset, PendingOp op,
                       const PostOptions& options);
  Status post(Endpoint& endpoint, PendingOp& op, Buffer& buffer, const PostOptions& options);
  // Moves an operation on by at most `budget` bytes (reduced by what was copied). True when it is finished.
  bool advance(Endpoint& endpoint, PendingOp& op, size_t& budget);
  void copy_chunk(PendingOp& op, size_t bytes);
  void finish(Endpoint& endpoint, PendingOp op, Errc result);
  void count_users(const PendingOp& op, int change);
  void after_push(Endpoint& endpoint);

  // -- progress.cc
  void service_sockets(uint64_t timeout_ns);
  void scan(Endpoint& endpoint, std::span<Completion> out, size_t& filled);
  void advance_pending(Endpoint& endpoint);
  void receive(Endpoint& endpoint, std::span<Completion> out, size_t& filled);
  void expire();
  void expire_handshakes();
  void start_scanning(Endpoint& endpoint);
  void stop_scanning(Endpoint& endpoint);
  void remove_from_scan(Endpoint& endpoint);
  void announce_sleep(Endpoint& endpoint);
  void wake_up(Endpoint& endpoint);
  bool has_work(Endpoint& endpoint);

  ShmOptions options_;
  Capabilities capabilities_;
  Counters counters_;

  FileDescriptor epoll_;
  FileDescriptor wake_fd_;
  FileDescriptor listener_;
  FileDescriptor reserve_;  // given up for a moment to turn a client away when no descriptor is left
  std::string path_;

  SlotTable<Endpoint> endpoints_;
  SlotTable<LocalRegion> regions_;
  SlotTable<Import> imports_;
  std::vector<EndpointId> scanned_;
  size_t cursor_ = 0;
  // Of the listening side.
  size_t open_endpoints_ = 0;  // past their handshake
  size_t shared_regions_ = 0;
  size_t shared_bytes_ = 0;
  size_t max_descriptors_ = 0;

  RingQueue<Completion> completions_;
  ReceivePool pool_;
  size_t pending_ops_ = 0;
  size_t handshakes_ = 0;
  size_t bulk_budget_ = 0;
  uint64_t earliest_deadline_ns_ = UINT64_MAX;
  uint64_t earliest_handshake_ns_ = UINT64_MAX;
  uint32_t polls_since_sockets_ = 0;
};

}  // namespace genie::datapath::shm
