#include "datapath/verbs/device.h"

#include <fcntl.h>
#include <netdb.h>
#include <rdma/rdma_cma.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/memory/numa.h"

namespace genie::datapath::verbs {
namespace {

// Room for a few links; it grows with them.
constexpr int kFirstCompletions = 4096;

struct FreeList {
  void operator()(ibv_device** list) const noexcept { ibv_free_device_list(list); }
};
using DeviceList = std::unique_ptr<ibv_device*, FreeList>;

Status system_error(const std::string& what, int error) {
  return Status(Errc::kIo, what + ": " + std::strerror(error));
}

bool set_nonblocking(int fd) noexcept { return ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK) == 0; }

GidType type_of(uint32_t type) noexcept {
  if (type == IBV_GID_TYPE_IB) return GidType::kInfiniBand;
  return type == IBV_GID_TYPE_ROCE_V1 ? GidType::kRoceV1 : GidType::kRoceV2;
}

uint64_t megabits_of(const ibv_port_attr& port) noexcept {
  const uint64_t lanes = port.active_width == 1   ? 1
                         : port.active_width == 2 ? 4
                         : port.active_width == 4 ? 8
                         : port.active_width == 8 ? 12
                                                  : 2;
  switch (port.active_speed) {
    case 1: return lanes * 2'500;
    case 2: return lanes * 5'000;
    case 4:
    case 8: return lanes * 10'000;
    case 16: return lanes * 14'000;
    case 32: return lanes * 25'000;
    case 64: return lanes * 50'000;
    case 128: return lanes * 100'000;
    default: return lanes * 10'000;
  }
}

int numa_node_of(const char* device) {
  int node = -1;
  std::ifstream(std::string("/sys/class/infiniband/") + device + "/device/numa_node") >> node;
  return node;
}

Result<ibv_mtu> choose_mtu(ibv_mtu active, size_t wanted_bytes) {
  if (wanted_bytes == 0) return active;
  for (int mtu = IBV_MTU_256; mtu <= active; ++mtu) {
    if (size_t{128} << mtu == wanted_bytes) return static_cast<ibv_mtu>(mtu);
  }
  return Status(Errc::kConfig, "an MTU of " + std::to_string(wanted_bytes) +
                                   " bytes is not possible: 256, 512, 1024, " + "2048 or 4096, and at most " +
                                   std::to_string(128 << active) + " on this port");
}

Status make_queues(Device& device) {
  device.channel.reset(ibv_create_comp_channel(device.context.get()));
  if (device.channel == nullptr) return system_error("cannot make a completion channel on " + device.name, errno);
  if (!set_nonblocking(device.channel->fd) || !set_nonblocking(device.context->async_fd)) {
    return system_error("cannot watch " + device.name, errno);
  }
  const int size = std::min(kFirstCompletions, device.completions_max);
  device.completions.reset(ibv_create_cq(device.context.get(), size, nullptr, device.channel.get(), 0));
  if (device.completions == nullptr) return system_error("cannot make a completion queue on " + device.name, errno);
  return {};
}

// An answer without a device: the port is not up, or not the kind that this fabric can use.
Result<std::unique_ptr<Device>> open_port(ibv_device* found, uint8_t port, const VerbsOptions& options, bool named,
                                          uint8_t* ports = nullptr) {
  const std::string where = std::string(ibv_get_device_name(found)) + " port " + std::to_string(port);
  auto device = std::make_unique<Device>();
  device->name = ibv_get_device_name(found);
  device->port = port;
  device->context.reset(ibv_open_device(found));
  if (device->context == nullptr) {
    return Status(Errc::kPermission, "cannot open " + device->name + ": " + std::strerror(errno) +
                                         "; the user needs read and write access to /dev/infiniband/uverbs*");
  }
  ibv_device_attr attributes{};
  ibv_port_attr state{};
  const bool known = ibv_query_device(device->context.get(), &attributes) == 0;
  if (known && ports != nullptr) *ports = attributes.phys_port_cnt;
  if (!known || ibv_query_port(device->context.get(), port, &state) != 0) {
    return Status(Errc::kConfig, device->name + " has no port " + std::to_string(port));
  }
  const bool usable = state.state == IBV_PORT_ACTIVE && found->transport_type == IBV_TRANSPORT_IB;
  if (!usable) {
    if (!named) return std::unique_ptr<Device>();
    return Status(Errc::kConfig, found->transport_type != IBV_TRANSPORT_IB
                                     ? where + " is iWARP, which this transport does not speak: use --transport ucx"
                                     : where + " is not up: 'rdma link' shows why; set its network interface up");
  }
  device->ethernet = state.link_layer == IBV_LINK_LAYER_ETHERNET;
  device->lid = state.lid;
  device->megabits = megabits_of(state);
  device->numa_node = numa_node_of(ibv_get_device_name(found));
  device->reads_in = static_cast<uint8_t>(std::clamp(attributes.max_qp_rd_atom, 1, 16));
  device->reads_out = static_cast<uint8_t>(std::clamp(attributes.max_qp_init_rd_atom, 1, 16));
  device->completions_max = attributes.max_cqe;
  GENIE_TRY(device->read_addresses(options.gid_index));
  const Result<ibv_mtu> mtu = choose_mtu(state.active_mtu, options.mtu_bytes);
  GENIE_TRY(mtu.status());
  device->mtu = *mtu;
  GENIE_TRY(make_queues(*device));
  return device;
}

Result<ibv_device*> find_device(std::span<ibv_device* const> all, const std::string& name) {
  std::string there;
  for (ibv_device* device : all) {
    if (name == ibv_get_device_name(device)) return device;
    there += there.empty() ? "" : ", ";
    there += ibv_get_device_name(device);
  }
  return Status(Errc::kConfig,
                "there is no RDMA device " + name + " here; there is " + (there.empty() ? "none" : there));
}

Status open_named(std::span<ibv_device* const> all, const VerbsOptions& options,
                  std::vector<std::unique_ptr<Device>>& opened) {
  const Result<std::vector<PortName>> ports = parse_ports(options.devices);
  GENIE_TRY(ports.status());
  for (const PortName& port : *ports) {
    const Result<ibv_device*> device = find_device(all, port.device);
    GENIE_TRY(device.status());
    Result<std::unique_ptr<Device>> made = open_port(*device, port.port, options, true);
    GENIE_TRY(made.status());
    opened.push_back(std::move(*made));
  }
  return {};
}

void open_every(std::span<ibv_device* const> all, const VerbsOptions& options,
                std::vector<std::unique_ptr<Device>>& opened) {
  for (ibv_device* device : all) {
    uint8_t ports = 1;
    for (uint8_t port = 1; port <= ports; ++port) {
      Result<std::unique_ptr<Device>> made = open_port(device, port, options, false, &ports);
      if (!made.ok()) {
        GENIE_LOG_WARN("verbs: {} port {} is left out: {}", ibv_get_device_name(device), port, made.status().text());
      } else if (*made != nullptr) {
        opened.push_back(std::move(*made));
      }
    }
  }
  const int thread_node = numa_node_of_this_thread();
  const auto rank = [](const auto& device) { return PortRank{device->megabits, device->numa_node}; };
  std::stable_sort(opened.begin(), opened.end(),
                   [&](const auto& a, const auto& b) { return better_port(rank(a), rank(b), thread_node); });
}

}  // namespace

Device::~Device() {
  if (completions != nullptr && unacknowledged_events != 0) {
    ibv_ack_cq_events(completions.get(), unacknowledged_events);
  }
}

Status Device::read_addresses(int gid_index) {
  ibv_port_attr state{};
  if (ibv_query_port(context.get(), port, &state) != 0) return system_error("cannot look at " + name, errno);
  gids.clear();
  const GidEntry* chosen = nullptr;
  for (int i = 0; i < state.gid_tbl_len; ++i) {
    ibv_gid_entry entry{};
    if (ibv_query_gid_ex(context.get(), port, static_cast<uint32_t>(i), &entry, 0) != 0) continue;
    GidEntry read{.index = static_cast<uint32_t>(i), .type = type_of(entry.gid_type)};
    std::copy_n(entry.gid.raw, read.gid.size(), read.gid.begin());
    gids.push_back(read);
  }
  if (gid_index < 0) {
    chosen = choose_gid(gids, ethernet);
  } else {
    const auto at = std::find_if(gids.begin(), gids.end(), [&](const GidEntry& entry) {
      return entry.index == static_cast<uint32_t>(gid_index);
    });
    if (at != gids.end()) chosen = &*at;
  }
  if (chosen == nullptr) {
    return Status(Errc::kConfig, name + " port " + std::to_string(port) + " has no GID" +
                                     (gid_index < 0 ? std::string() : " " + std::to_string(gid_index)) +
                                     ": give its network interface an address ('rdma link' names it)");
  }
  gid = *chosen;
  return {};
}

std::string Device::describe() const {
  return fmt::format("{} port {}, {} ({}, GID {}), MTU {}, {} Mbit/s{}", name, port, gid_text(gid.gid),
                     gid_type_name(gid.type), gid.index, 128 << mtu, megabits,
                     numa_node < 0 ? std::string() : fmt::format(", NUMA node {}", numa_node));
}

Status Device::reserve(int wanted) {
  if (completions_reserved + wanted > completions->cqe) {
    const int size = std::min(completions_max, 2 * (completions_reserved + wanted));
    if (size < completions_reserved + wanted || ibv_resize_cq(completions.get(), size) != 0) {
      return Status(Errc::kQuotaExceeded, name + " has no room for the completions of another connection");
    }
  }
  completions_reserved += wanted;
  return {};
}

Result<std::vector<std::unique_ptr<Device>>> open_devices(const VerbsOptions& options) {
  int count = 0;
  const DeviceList list(ibv_get_device_list(&count));
  const std::span<ibv_device* const> all(list.get(), list == nullptr ? 0 : static_cast<size_t>(count));
  if (all.empty()) {
    const std::string missing =
        "this machine has no RDMA device: load its driver (mlx5_ib; rdma_rxe for Soft-RoCE), see 'genie doctor', "
        "or use another transport";
    if (options.devices.empty()) return Status(Errc::kUnsupported, missing);
    return Status(Errc::kConfig, "RDMA device '" + options.devices + "' is wanted, but " + missing);
  }
  std::vector<std::unique_ptr<Device>> opened;
  if (options.devices.empty()) {
    open_every(all, options, opened);
  } else {
    GENIE_TRY(open_named(all, options, opened));
  }
  if (opened.size() > options.rails_max) opened.resize(options.rails_max);
  if (opened.empty()) {
    return Status(Errc::kUnreachable,
                  "no port of the RDMA devices here is up: 'rdma link' shows them; set a network interface up, or use "
                  "another transport");
  }
  for (const auto& device : opened) GENIE_LOG_INFO("verbs: uses {}", device->describe());
  return opened;
}

bool any_port_is_up(const VerbsOptions& options) {
  int count = 0;
  const DeviceList list(ibv_get_device_list(&count));
  const Result<std::vector<PortName>> named = parse_ports(options.devices);
  for (int i = 0; list != nullptr && named.ok() && i < count; ++i) {
    ibv_device* const device = list.get()[i];
    const Handle<ibv_context> context(ibv_open_device(device));
    ibv_device_attr attributes{};
    if (context == nullptr || ibv_query_device(context.get(), &attributes) != 0) continue;
    for (uint8_t port = 1; port <= attributes.phys_port_cnt; ++port) {
      ibv_port_attr state{};
      if (ibv_query_port(context.get(), port, &state) != 0 || state.state != IBV_PORT_ACTIVE) continue;
      const bool meant = named->empty() || std::any_of(named->begin(), named->end(), [&](const PortName& name) {
                           return name.device == ibv_get_device_name(device) && name.port == port;
                         });
      if (meant && device->transport_type == IBV_TRANSPORT_IB) return true;
    }
  }
  return false;
}

Result<Route> find_route(std::string_view host) {
  const std::string name(host);
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST;
  addrinfo* found = nullptr;
  if (::getaddrinfo(name.c_str(), nullptr, &hints, &found) != 0) return Errc::kNotFound;
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> address(found, &::freeaddrinfo);
  // Without a channel of ours the calls wait for their answer.
  rdma_cm_id* made = nullptr;
  if (rdma_create_id(nullptr, &made, nullptr, RDMA_PS_TCP) != 0) return Errc::kNotFound;
  struct DestroyId {
    void operator()(rdma_cm_id* id) const noexcept { static_cast<void>(rdma_destroy_id(id)); }
  };
  const std::unique_ptr<rdma_cm_id, DestroyId> id(made);
  constexpr int kTimeoutMs = 500;
  if (rdma_resolve_addr(id.get(), nullptr, address->ai_addr, kTimeoutMs) != 0 || id->verbs == nullptr) {
    return Errc::kNotFound;
  }
  Route route{.device = ibv_get_device_name(id->verbs->device), .port = id->port_num};
  std::copy_n(id->route.addr.addr.ibaddr.sgid.raw, route.gid.size(), route.gid.begin());
  return route;
}

}  // namespace genie::datapath::verbs
