// The fake network's core and its transports. Internal to this folder.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "datapath/base/ring_queue.h"
#include "datapath/base/slot_table.h"
#include "datapath/fake/fake_network.h"

namespace genie::datapath {

namespace fake {

class FakeTransport;

// What the seed decided for one operation.
struct Fate {
  uint64_t arrives_ns = 0;
  bool lost = false;
  bool breaks = false;
};

}  // namespace fake

class FakeNetwork::Core {
 public:
  explicit Core(const FakeOptions& with) : options(with), random(with.faults.seed) {}

  // Moves on everything whose time has come.
  void run();
  // The next moment after now at which run() may do something; UINT64_MAX when there is none.
  uint64_t next_ns();
  fake::Fate draw(size_t bytes);

  const FakeOptions options;
  uint64_t now_ns = 0;
  std::mt19937_64 random;
  std::vector<fake::FakeTransport*> transports;
  std::map<std::string, fake::FakeTransport*, std::less<>> listeners;
};

namespace fake {

inline constexpr size_t kClasses = 3;
inline constexpr size_t kMaxSendBytes = 8192;

// Shared by the transport that allocated it and by the imports of it.
struct Memory {
  std::unique_ptr<std::byte[]> owned;  // null for registered memory
  std::byte* data = nullptr;
  size_t size = 0;
  size_t imports = 0;
  bool released = false;
};

// What a connection's regions take, counted against its listener's limits.
struct Account {
  FakeLimits limits;
  size_t regions = 0;
  size_t bytes = 0;
};

struct FakeRegion {
  std::shared_ptr<Memory> memory;
  EndpointId endpoint;  // not valid for registered memory, which any endpoint may address
  std::shared_ptr<Account> account;
  RemoteKey remote;
  size_t users = 0;
  bool prepared = false;
};

struct FakeImport {
  std::shared_ptr<Memory> memory;
  EndpointId endpoint;
  size_t users = 0;
};

struct HandedOver {
  std::shared_ptr<Memory> memory;
  size_t size = 0;
  bool beyond_limits = false;
};

struct FakeOp {
  Completion completion;  // what the poster gets back
  RemoteRegion remote;
  size_t offset = 0;
  uint64_t deadline_ns = 0;
  Fate fate;
};

struct End {
  EndpointId id;
  FakeTransport* peer = nullptr;  // null once the peer has gone
  EndpointId peer_id;
  std::shared_ptr<Account> account;
  std::vector<std::byte> token;
  bool accepted = false;
  std::array<RingQueue<FakeOp>, kClasses> pending;
  std::array<uint64_t, kClasses> last_arrival_ns{};
  RingQueue<Completion> unread;
  std::map<uint64_t, HandedOver> handed_over;  // by the key's nonce
};

class FakeTransport final : public Transport {
 public:
  FakeTransport(std::shared_ptr<FakeNetwork::Core> core, const FakeLimits& limits);
  ~FakeTransport() override;

  const Capabilities& capabilities() const noexcept override { return capabilities_; }
  Status listen(std::string_view where) override;
  std::string address() const override { return name_; }
  Result<EndpointId> connect(std::string_view address, std::span<const std::byte> token, Deadline deadline) override;
  std::span<const std::byte> endpoint_token(EndpointId endpoint) const override;
  Status close(EndpointId endpoint) override;

  Result<Region> allocate(EndpointId endpoint, size_t size, Deadline deadline) override;
  Result<Region> publish(EndpointId, size_t) override {
    return Status(Errc::kUnsupported, "the fake network publishes no memory");
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
  void wake() override { woken_.store(true, std::memory_order_release); }
  Counters counters() const override { return counters_; }

  // For the core.
  void progress();
  uint64_t next_ns();

 private:
  End* find(EndpointId id) noexcept { return ends_.find(id.index, id.generation); }
  EndpointId add_end(FakeTransport* peer, std::shared_ptr<Account> account, std::span<const std::byte> token);
  void end(End& end, Errc cause, Errc flushed);
  Result<Region> add_region(EndpointId endpoint, std::shared_ptr<Account> account, std::shared_ptr<Memory> memory);
  Result<FakeRegion*> resolve(EndpointId asked_by, const RemoteKey& key);
  void forget(MemoryKey key, FakeRegion& region);
  Status post_transfer(EndpointId id, Buffer& local, const RemoteRegion& remote, size_t offset, Opcode opcode,
                       uint32_t immediate, const PostOptions& options);
  Status post(End& end, FakeOp op, Buffer& buffer, const PostOptions& options);
  // False when the endpoint is gone.
  bool progress_class(End& end, size_t index);
  // Whether the peer can take it now; carries it out if so.
  bool deliver(End& end, FakeOp& op);
  void count_users(const FakeOp& op, size_t change);

  std::shared_ptr<FakeNetwork::Core> core_;
  FakeLimits limits_;
  Capabilities capabilities_;
  Counters counters_;
  std::string name_;
  SlotTable<End> ends_;
  SlotTable<FakeRegion> regions_;
  SlotTable<FakeImport> imports_;
  size_t accepted_ = 0;
  RingQueue<Completion> completions_;
  std::atomic<bool> woken_{false};
};

}  // namespace fake
}  // namespace genie::datapath
