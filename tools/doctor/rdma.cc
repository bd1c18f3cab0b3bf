#include "tools/doctor/rdma.h"

#include <algorithm>
#include <charconv>
#include <string_view>

namespace genie::doctor {
namespace {

constexpr const char* kDevices = "/sys/class/infiniband/";

bool is_zero(std::string_view gid) { return gid.find_first_not_of("0:") == std::string_view::npos; }
// The prefix of a GID that the subnet manager has not set, which IPv6 calls link-local.
bool is_local(std::string_view gid) { return gid.starts_with("fe80:"); }
bool is_ipv4(std::string_view gid) { return gid.starts_with("0000:0000:0000:0000:0000:ffff:"); }

std::vector<Gid> read_gids(const Host& host, const std::string& port) {
  std::vector<Gid> gids;
  for (const std::string& index : host.names(port + "/gids")) {
    Gid gid;
    gid.address = host.text(port + "/gids/" + index).value_or("");
    if (is_zero(gid.address)) continue;
    gid.index = static_cast<uint32_t>(leading_number(index).value_or(0));
    // An index without a type cannot be used, whatever its address says.
    gid.type = host.text(port + "/gid_attrs/types/" + index).value_or("");
    gid.interface = host.text(port + "/gid_attrs/ndevs/" + index).value_or("");
    gids.push_back(std::move(gid));
  }
  std::sort(gids.begin(), gids.end(), [](const Gid& a, const Gid& b) { return a.index < b.index; });
  return gids;
}

RdmaPort read_port(const Host& host, const std::string& device, const std::string& port) {
  const std::string folder = kDevices + device + "/ports/" + port;
  RdmaPort made{.device = device, .port = port};
  made.state = host.text(folder + "/state").value_or("unknown");
  made.phys_state = host.text(folder + "/phys_state").value_or("unknown");
  made.rate = host.text(folder + "/rate").value_or("unknown");
  made.ethernet = host.text(folder + "/link_layer").value_or("") == "Ethernet";
  const std::string lid = host.text(folder + "/lid").value_or("0x0");
  if (lid.starts_with("0x")) std::from_chars(lid.data() + 2, lid.data() + lid.size(), made.lid, 16);
  made.gids = read_gids(host, folder);
  return made;
}

int rank(const Gid& gid) noexcept {
  if (gid.type != "RoCE v2") return 3;
  if (is_ipv4(gid.address)) return 0;
  return is_local(gid.address) ? 2 : 1;
}

}  // namespace

std::vector<RdmaDevice> rdma_devices(const Host& host) {
  std::vector<RdmaDevice> devices;
  for (const std::string& name : host.names("/sys/class/infiniband")) {
    RdmaDevice device{.name = name};
    for (const std::string& file : host.names("/sys/class/infiniband_verbs")) {
      if (host.text("/sys/class/infiniband_verbs/" + file + "/ibdev") == name) device.uverbs = file;
    }
    const std::string folder = kDevices + name;
    device.iommu_type = host.text(folder + "/device/iommu_group/type").value_or("");
    device.numa_node = host.text(folder + "/device/numa_node").value_or("");
    for (const std::string& port : host.names(folder + "/ports")) device.ports.push_back(read_port(host, name, port));
    devices.push_back(std::move(device));
  }
  return devices;
}

const Gid* best_gid(const RdmaPort& port) {
  if (port.gids.empty()) return nullptr;
  if (!port.ethernet) return &port.gids.front();
  const Gid* best = nullptr;
  for (const Gid& gid : port.gids) {
    if (!gid.type.empty() && (best == nullptr || rank(gid) < rank(*best))) best = &gid;
  }
  return best;
}

const char* gid_kind(const Gid& gid) noexcept {
  constexpr const char* kKinds[] = {"RoCE v2, IPv4", "RoCE v2, IPv6", "RoCE v2, link-local", "RoCE v1"};
  return kKinds[rank(gid)];
}

}  // namespace genie::doctor
