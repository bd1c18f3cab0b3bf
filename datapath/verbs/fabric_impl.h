// VerbsFabric: the implementation behind make_verbs_fabric(). Internal to this folder.
//
// One source per event: verbs_fabric.cc (memory, construction), link.cc (links), post.cc (transfers and messages),
// progress.cc (completions), failover.cc (rails that fail), events.cc (sleeping, asynchronous events).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "datapath/base/file_descriptor.h"
#include "datapath/verbs/link.h"

namespace genie::datapath::verbs {

class VerbsFabric final : public net::Fabric {
 public:
  static Result<std::unique_ptr<net::Fabric>> make(const VerbsOptions& options);
  ~VerbsFabric() override;

  const net::FabricInfo& info() const noexcept override { return info_; }

  Result<std::unique_ptr<net::FabricMemory>> allocate(size_t size, bool present) override;
  Result<std::unique_ptr<net::FabricMemory>> register_memory(std::span<std::byte> memory, MemoryKind kind,
                                                             bool shared) override;
  Result<std::vector<std::byte>> export_memory(net::FabricLink& link, net::FabricMemory& memory) override;
  Result<std::unique_ptr<net::FabricRemote>> import_memory(net::FabricLink& link, std::span<const std::byte> packed_key,
                                                           uint64_t address, size_t size) override;

  Result<std::unique_ptr<net::FabricLink>> open_link(std::string_view host) override;
  Result<std::vector<std::byte>> address(net::FabricLink& link) override;
  Status connect(net::FabricLink& link, std::span<const std::byte> peer_address) override;
  void close(net::FabricLink& link, bool orderly) override;
  std::string describe(net::FabricLink& link) override;

  size_t post(net::FabricLink& link, TransferClass lane, std::span<const net::Descriptor> batch) override;
  std::span<std::byte> message_place(net::FabricLink& link, TransferClass lane) override;
  void send(net::FabricLink& link, TransferClass lane, size_t size) override;

  bool poll(net::FabricSink& sink) override;
  int event_fd() const noexcept override { return epoll_.get(); }
  bool arm() override;

  // -- link.cc, for ~Link
  void forget(Link& link) noexcept;
  void cut(Link& link, Errc result) noexcept;

 private:
  // Work requests whose constant fields are set once; posted as one list.
  static constexpr uint32_t kChain = 32;
  struct Chain {
    QueuePair* pair = nullptr;
    uint32_t count = 0;
    std::array<ibv_send_wr, kChain> requests;
    std::array<ibv_sge, kChain> pieces;
  };
  struct PairSlot {
    QueuePair* pair = nullptr;
    uint16_t generation = 0;
  };

  explicit VerbsFabric(const VerbsOptions& options);
  Status start();
  Status try_devices(std::span<std::byte> memory, MemoryKind kind, bool shared);

  // -- link.cc
  Status add_rail(Link& link, Device& device, const GidEntry& gid);
  Status make_rings(Link& link);
  Status add_pair(QueuePair& pair);
  void remove_pair(QueuePair& pair) noexcept;
  Status connect_rail(Rail& rail, std::span<const std::byte> peer);
  void drain(Link& link);
  void destroy_pairs(Link& link, Rail& rail) noexcept;

  // -- post.cc
  int choose_rail(const Link& link, size_t lane, const net::Descriptor& wanted) const noexcept;
  bool stage(Lane& lane, Flight& flight, const QueuePair& pair);
  static Status copy_staged(const Flight& flight);
  void refuse(Link& link, size_t lane, Flight& flight, const Status& why);
  void append(Link& link, size_t lane, uint32_t count);
  ibv_send_wr& extend(QueuePair& pair, Work work);
  void ring_doorbell(Chain& chain);
  void ring_doorbells();
  void post_message(Link& link, size_t lane, uint32_t number, uint32_t place);
  void post_notice(Link& link, uint32_t rail, uint32_t over);
  void post_fence(QueuePair& pair);

  // -- progress.cc
  QueuePair* find_pair(uint32_t id) noexcept;
  void handle(const ibv_wc& completion, net::FabricSink& sink);
  void handle_receive(QueuePair& pair, const ibv_wc& completion, net::FabricSink& sink);
  void handle_error(QueuePair& pair, const ibv_wc& completion);
  void complete(QueuePair& pair, uint32_t upto);
  void finish(Link& link, Lane& lane, Flight& flight, Errc result);
  void report(Link& link, net::FabricSink& sink);
  void settle(net::FabricSink& sink);
  void mark_dirty(Link& link);

  // -- failover.cc
  void fail_link(Link& link, Status why);
  void fail_rail(Link& link, uint32_t rail, const std::string& why);
  void handle_notice(Link& link, uint32_t notice);
  void advance_failover(Link& link);
  bool rail_flushed(const Rail& rail) const noexcept;
  void tell(Link& link, uint32_t rail);
  void resume(Link& link, uint32_t rail);
  int next_up(const Link& link) const noexcept;

  // -- events.cc
  void drain_events();
  void handle_async_events();
  void port_returned(Device& device);
  void device_failed(Device& device, const char* why);

  VerbsOptions options_;
  net::FabricInfo info_;
  std::vector<std::unique_ptr<Device>> devices_;
  FileDescriptor epoll_;
  std::array<Chain, kRailsMax> chains_;

  std::vector<PairSlot> pairs_;
  std::vector<uint16_t> free_pairs_;
  std::vector<Link*> links_;
  std::vector<Link*> dirty_;
  std::vector<Link*> ending_;   // drain or are cut
  std::vector<Link*> failing_;  // have a rail on its way down
  std::vector<ibv_wc> stashed_;
  bool armed_ = false;
  bool told_of_staging_ = false;
  uint32_t polls_ = 0;
};

}  // namespace genie::datapath::verbs
