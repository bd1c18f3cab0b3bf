// Construction, and memory.
#include "datapath/verbs/verbs_fabric.h"

#include <sys/epoll.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/memory/gpu_memory.h"
#include "datapath/memory/pages.h"
#include "datapath/memory/populate.h"
#include "datapath/verbs/fabric_impl.h"

namespace genie::datapath {

bool verbs_compiled_in() noexcept { return true; }

bool verbs_usable(const VerbsOptions& options) { return verbs::any_port_is_up(options); }

Result<std::unique_ptr<net::Fabric>> make_verbs_fabric(const VerbsOptions& options) {
  return verbs::VerbsFabric::make(options);
}

Result<std::unique_ptr<Transport>> make_verbs_transport(const VerbsOptions& options) {
  Result<std::unique_ptr<net::Fabric>> fabric = make_verbs_fabric(options);
  GENIE_TRY(fabric.status());
  return make_net_transport(std::move(*fabric), options.net);
}

namespace verbs {
namespace {

void free_pages(void* context, std::byte*, size_t) noexcept { delete static_cast<PageMapping*>(context); }

Result<Buffer> map_present(size_t size) {
  Result<PageMapping> pages = map_pages(size, size >= kHugePageBytes);
  if (!pages.ok()) return pages.status();
  auto* const held = new PageMapping(std::move(*pages));
  return Buffer(held->data(), size, MemoryKey(), &free_pages, held);
}

}  // namespace

Result<std::unique_ptr<net::Fabric>> VerbsFabric::make(const VerbsOptions& options) {
  if (options.rails_max == 0 || options.rails_max > kRailsMax) {
    return Status(Errc::kConfig, "rails_max is " + std::to_string(options.rails_max) + "; 1 to " +
                                     std::to_string(kRailsMax) + " rails are possible");
  }
  std::unique_ptr<VerbsFabric> fabric(new VerbsFabric(options));
  GENIE_TRY(fabric->start());
  return std::unique_ptr<net::Fabric>(std::move(fabric));
}

VerbsFabric::VerbsFabric(const VerbsOptions& options) : options_(options), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {}

VerbsFabric::~VerbsFabric() = default;

Status VerbsFabric::start() {
  Result<std::vector<std::unique_ptr<Device>>> devices = open_devices(options_);
  GENIE_TRY(devices.status());
  devices_ = std::move(*devices);
  for (const auto& device : devices_) {
    for (const int fd : {device->channel->fd, device->context->async_fd}) {
      epoll_event event{};
      event.events = EPOLLIN;
      event.data.fd = fd;
      if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
        return Status(Errc::kIo, "cannot watch " + device->name + ": " + std::strerror(errno));
      }
    }
  }
  info_ = {.name = "verbs",
           .max_message_bytes = kSlotBytes,
           .chunk_bytes = options_.chunk_bytes,
           .max_in_flight = kFlights / 2,
           .copies = false,
           .stages = true};
  for (Chain& chain : chains_) {
    for (uint32_t i = 0; i < kChain; ++i) {
      chain.requests[i] = {};
      chain.requests[i].sg_list = &chain.pieces[i];
      chain.requests[i].num_sge = 1;
      chain.requests[i].next = i + 1 < kChain ? &chain.requests[i + 1] : nullptr;
    }
  }
  return {};
}

Result<std::unique_ptr<net::FabricMemory>> VerbsFabric::allocate(size_t size, bool present) {
  if (size == 0 || size > SIZE_MAX / 4) return Status(Errc::kInvalidArgument, "size of a region out of range");
  Result<Buffer> memory = present ? map_present(size) : map_block(size);
  if (!memory.ok()) return memory.status();
  return std::unique_ptr<net::FabricMemory>(std::make_unique<VerbsMemory>(std::move(*memory)));
}

// Registered where it is first used: which link that will be is not known yet. Whether the devices reach GPU memory at all is
// found out now.
Result<std::unique_ptr<net::FabricMemory>> VerbsFabric::register_memory(std::span<std::byte> memory, MemoryKind kind,
                                                                        bool shared) {
  std::optional<GpuCopier> copier;
  if (kind != MemoryKind::kHost) {
    const Status direct = try_devices(memory, kind, shared);
    if (!direct.ok()) {
      Result<GpuCopier> made = GpuCopier::make(memory.data());
      if (!made.ok()) return direct;
      copier.emplace(std::move(*made));
      if (!std::exchange(told_of_staging_, true)) {
        GENIE_LOG_WARN("verbs: GPU memory goes through host memory, which is slow: {}", direct.text());
      }
    }
  }
  return std::unique_ptr<net::FabricMemory>(std::make_unique<VerbsMemory>(memory, kind, std::move(copier)));
}

// Whether each device that is up reaches the memory.
Status VerbsFabric::try_devices(std::span<std::byte> memory, MemoryKind kind, bool shared) {
  for (const auto& device : devices_) {
    if (!device->up) continue;
    const Result<std::shared_ptr<Domain>> trial = Domain::make(*device, options_.relaxed_ordering);
    if (!trial.ok()) continue;  // links do without it, too
    GENIE_TRY(register_pages(**trial, memory, kind, shared).status());
  }
  return {};
}

Result<std::vector<std::byte>> VerbsFabric::export_memory(net::FabricLink& base, net::FabricMemory& memory) {
  const Link& link = static_cast<Link&>(base);
  if (memory.staged)
    return Status(Errc::kUnsupported, "some RDMA device does not reach this GPU memory: peers cannot have it");
  // In the order of this side's address(), which the peer knows.
  std::vector<uint32_t> keys(kRailsMax);
  for (const Rail& rail : link.rails) {
    if (rail.state == RailState::kDown) continue;
    const Result<ibv_mr*> region = static_cast<VerbsMemory&>(memory).in(rail.domain, true);
    GENIE_TRY(region.status());
    keys[rail.own_index] = (*region)->rkey;
  }
  std::vector<std::byte> packed(kRailsMax * sizeof(uint32_t));
  std::memcpy(packed.data(), keys.data(), packed.size());
  return packed;
}

Result<std::unique_ptr<net::FabricRemote>> VerbsFabric::import_memory(net::FabricLink& base,
                                                                      std::span<const std::byte> packed_key, uint64_t,
                                                                      size_t) {
  const Link& link = static_cast<Link&>(base);
  if (packed_key.size() != kRailsMax * sizeof(uint32_t)) {
    return Status(Errc::kProtocol, "the peer's key of RDMA memory has another length");
  }
  std::array<uint32_t, kRailsMax> keys;
  std::memcpy(keys.data(), packed_key.data(), packed_key.size());
  auto remote = std::make_unique<Remote>();
  for (size_t i = 0; i < link.rails.size(); ++i) remote->keys[i] = keys[link.rails[i].peer_index];
  return std::unique_ptr<net::FabricRemote>(std::move(remote));
}

}  // namespace verbs
}  // namespace genie::datapath
