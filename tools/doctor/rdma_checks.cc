// RDMA devices: are they there, may they be opened, are they up, what do they run over, and where do they sit?
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "tools/doctor/doctor.h"
#include "tools/doctor/rdma.h"

namespace genie::doctor {
namespace {

// A RoCE packet of 4096 bytes with its headers.
constexpr uint64_t kWantedMtu = 4200;

// Network cards that could do RDMA but have no driver for it: their names on the PCI bus.
std::vector<std::string> idle_nics(const Host& host) {
  std::vector<std::string> found;
  for (const std::string& name : host.names("/sys/bus/pci/devices")) {
    const std::string folder = "/sys/bus/pci/devices/" + name;
    const bool mellanox = host.text(folder + "/vendor") == "0x15b3";
    if (mellanox && host.text(folder + "/class").value_or("").starts_with("0x02")) found.push_back(name);
  }
  return found;
}

Line no_devices(const Host& host, const Purpose& purpose) {
  const bool wanted = purpose.wants("verbs");
  const std::vector<std::string> idle = idle_nics(host);
  Line line{"rdma.devices", wanted ? Level::kFail : Level::kOk,
            "no RDMA device: transports are shared memory and what UCX finds without one", ""};
  if (!idle.empty()) {
    line.level = wanted ? Level::kFail : Level::kWarn;
    line.text = fmt::format("the network card {} can do RDMA, but the kernel has no RDMA device", idle.front());
    line.cure = "modprobe mlx5_ib (mlx4_ib for ConnectX-3); in a virtual machine pass the whole function through";
  } else if (wanted) {
    line.text = "no RDMA device, which the transport verbs needs";
    line.cure =
        "install the card's driver; without a card: 'rdma link add rxe0 type rxe netdev eth0' (Soft-RoCE), or "
        "--transport ucx";
  }
  return line;
}

Line device_line(const Host& host, const RdmaDevice& device) {
  Line line{"rdma.devices", Level::kOk, device.name, ""};
  const std::string file = "/dev/infiniband/" + device.uverbs;
  if (device.uverbs.empty()) {
    line.level = Level::kFail;
    line.text += ": the kernel gives programs no access to it";
    line.cure = "modprobe ib_uverbs";
  } else if (!host.has(file)) {
    line.level = Level::kFail;
    line.text += fmt::format(": {} is missing", file);
    line.cure = "a container needs --device=/dev/infiniband (Kubernetes: the RDMA device plug-in); else restart udev";
  } else if (!host.usable(file)) {
    line.level = Level::kFail;
    line.text += fmt::format(": {} may not be opened by this user", file);
    line.cure = "join the group that owns it (ls -l /dev/infiniband), or add a udev rule with MODE=\"0666\"";
  } else if (!host.usable("/dev/infiniband/rdma_cm")) {
    line.level = Level::kWarn;
    line.text += fmt::format(" ({}), but /dev/infiniband/rdma_cm cannot be opened", file);
    line.cure = "modprobe rdma_ucm; a container needs --device=/dev/infiniband";
  } else {
    line.text += fmt::format(" ({})", file);
  }
  return line;
}

Line link_line(const RdmaPort& port, bool another_is_up) {
  Line line{"rdma.link", Level::kOk, fmt::format("{}: {}, {}", port.name(), port.state, port.rate), ""};
  if (port.active()) return line;
  line.text = fmt::format("{}: {} (physically {})", port.name(), port.state, port.phys_state);
  // A second port without a cable is common, a host without any link is not.
  line.level = another_is_up ? Level::kWarn : Level::kFail;
  const bool initializing = port.state.starts_with("2:") || port.state.starts_with("3:");
  if (initializing && !port.ethernet) {
    line.cure = "the link waits for a subnet manager: start opensm on one host, or the one of the switch";
  } else if (port.ethernet) {
    line.cure = "ip link set dev INTERFACE up ('rdma link' names it); check cable, module and the switch's port";
  } else {
    line.cure = "check cable, module and the switch's port (ibstat, iblinkinfo)";
  }
  return line;
}

Line gid_line(const RdmaPort& port) {
  Line line{"rdma.gid", Level::kOk, "", ""};
  const Gid* gid = best_gid(port);
  if (!port.ethernet && port.lid == 0) {
    return {"rdma.gid", Level::kFail, port.name() + ": the port has no address in its subnet (LID 0)",
            "start a subnet manager: opensm on one host, or the one of the switch"};
  }
  if (gid == nullptr) {
    return {"rdma.gid", Level::kFail, port.name() + ": no GID that could be used",
            "give its network interface an address: ip address add ADDRESS/PREFIX dev INTERFACE"};
  }
  if (!port.ethernet) {
    line.text = fmt::format("{}: GID {} {}, LID {}", port.name(), gid->index, gid->address, port.lid);
    return {line};
  }
  line.text =
      fmt::format("{}: GID {} {} ({}, {})", port.name(), gid->index, gid->address, gid_kind(*gid), gid->interface);
  if (gid->type != "RoCE v2") {
    line.level = Level::kWarn;
    line.text += ": RoCE v1 does not cross routers, and peers with v2 do not answer";
    line.cure = "echo 'RoCE v2' into the device's default_roce_mode (cma_roce_mode); give the interface an IP address";
  } else if (gid->address.starts_with("fe80:")) {
    line.level = Level::kWarn;
    line.text += ": a link-local address reaches peers on the same wire only";
    line.cure = fmt::format("ip address add ADDRESS/PREFIX dev {}", gid->interface);
  }
  return line;
}

Line mtu_line(const Host& host, const RdmaPort& port) {
  const Gid* gid = best_gid(port);
  Line line{"rdma.mtu", Level::kOk, "", ""};
  const auto mtu = host.number("/sys/class/net/" + gid->interface + "/mtu");
  if (!mtu) {
    line.text = fmt::format("{}: the MTU of {} cannot be read", port.name(), gid->interface);
    return line;
  }
  line.text = fmt::format("{}: {} has MTU {}", port.name(), gid->interface, *mtu);
  if (*mtu < kWantedMtu) {
    line.level = Level::kWarn;
    line.text += ", so that RDMA packets carry 1024 bytes or less instead of 4096";
    line.cure = fmt::format("ip link set dev {} mtu 9000 (at least {}), on every host and switch of the network",
                            gid->interface, kWantedMtu);
  }
  return line;
}

// Ports that differ would be striped as the slowest allows.
void check_equal_mtus(const Host& host, const std::vector<const RdmaPort*>& ports, Lines& out) {
  std::set<uint64_t> mtus;
  for (const RdmaPort* port : ports) {
    const Gid* gid = port->ethernet ? best_gid(*port) : nullptr;
    const auto mtu = gid != nullptr ? host.number("/sys/class/net/" + gid->interface + "/mtu") : std::nullopt;
    if (mtu) mtus.insert(*mtu);
  }
  if (mtus.size() < 2) return;
  out.push_back(
      {"rdma.mtu", Level::kWarn,
       fmt::format("the interfaces of the RDMA devices differ in MTU ({} to {})", *mtus.begin(), *mtus.rbegin()),
       "set the same MTU on all of them"});
}

Line iommu_line(const Host& host, const std::vector<RdmaDevice>& devices) {
  const size_t groups = host.names("/sys/kernel/iommu_groups").size();
  if (groups == 0) return {"iommu", Level::kOk, "no IOMMU stands between devices and memory", ""};
  std::string translated;
  for (const RdmaDevice& device : devices) {
    if (device.iommu_type.starts_with("DMA")) translated += (translated.empty() ? "" : ", ") + device.name;
  }
  if (translated.empty()) {
    return {"iommu", Level::kOk, fmt::format("on ({} groups); no RDMA device's addresses are translated", groups), ""};
  }
  return {
      "iommu", Level::kWarn,
      "the IOMMU translates each access of " + translated + ": slower, and transfers between devices leave the switch",
      "boot with iommu=pt (and intel_iommu=on or amd_iommu=on where it is to stay on)"};
}

// The CPUs of the node where the device sits, and whether this process may run on one of them.
Line numa_line(const Host& host, const RdmaDevice& device) {
  Line line{"numa", Level::kOk, "", ""};
  const auto node = leading_number(device.numa_node);
  if (!node) {
    return {"numa", Level::kWarn, device.name + ": the firmware does not say at which NUMA node it sits",
            "look it up (lstopo) and start the node with numactl --cpunodebind=N --membind=N"};
  }
  const auto local = cpu_list(host.text(fmt::format("/sys/devices/system/node/node{}/cpulist", *node)).value_or(""));
  const auto allowed = cpu_list(host.field("/proc/self/status", "Cpus_allowed_list").value_or(""));
  const bool near = std::any_of(allowed.begin(), allowed.end(), [&](uint32_t cpu) {
    return std::find(local.begin(), local.end(), cpu) != local.end();
  });
  line.text = fmt::format("{} sits at NUMA node {}", device.name, *node);
  if (!near) {
    line.level = Level::kWarn;
    line.text += ", where this process has no core";
    line.cure = fmt::format("numactl --cpunodebind={0} --membind={0} genie-node ...", *node);
  }
  return line;
}

Lines check_numa(const Host& host, const std::vector<RdmaDevice>& devices) {
  size_t nodes = 0;
  for (const std::string& name : host.names("/sys/devices/system/node")) {
    nodes += name.starts_with("node") && leading_number(std::string_view(name).substr(4)) ? 1 : 0;
  }
  if (nodes < 2) return {{"numa", Level::kOk, "one NUMA node", ""}};
  Lines lines;
  for (const RdmaDevice& device : devices) lines.push_back(numa_line(host, device));
  if (lines.empty()) lines.push_back({"numa", Level::kOk, fmt::format("{} NUMA nodes, no RDMA device", nodes), ""});
  if (host.number("/proc/sys/kernel/numa_balancing").value_or(0) != 0) {
    lines.push_back({"numa", Level::kWarn,
                     "the kernel moves pages between NUMA nodes while programs run (numa_balancing)",
                     "sysctl kernel.numa_balancing=0"});
  }
  return lines;
}

}  // namespace

Lines check_rdma(const Host& host, const Purpose& purpose) {
  const std::vector<RdmaDevice> devices = rdma_devices(host);
  Lines lines;
  if (devices.empty()) lines.push_back(no_devices(host, purpose));
  std::vector<const RdmaPort*> up;
  for (const RdmaDevice& device : devices) {
    lines.push_back(device_line(host, device));
    for (const RdmaPort& port : device.ports) {
      if (port.active()) up.push_back(&port);
    }
  }
  for (const RdmaDevice& device : devices) {
    for (const RdmaPort& port : device.ports) lines.push_back(link_line(port, !up.empty()));
  }
  for (const RdmaPort* port : up) {
    lines.push_back(gid_line(*port));
    if (port->ethernet && best_gid(*port) != nullptr) lines.push_back(mtu_line(host, *port));
  }
  check_equal_mtus(host, up, lines);
  // Only what verbs asked for fails: shared memory and TCP work without.
  if (purpose.transport != "auto" && !purpose.wants("verbs")) {
    for (Line& line : lines) line.level = std::min(line.level, Level::kWarn);
  }
  lines.push_back(iommu_line(host, devices));
  const Lines numa = check_numa(host, devices);
  lines.insert(lines.end(), numa.begin(), numa.end());
  return lines;
}

// A device reaches GPU memory through dma-buf (the open driver's kernel modules, from Linux 5.12 on), or nvidia-peermem.
Lines check_gpu(const Host& host) {
  std::vector<std::string> gpus;
  std::string translated;
  for (const std::string& name : host.names("/sys/bus/pci/devices")) {
    const std::string folder = "/sys/bus/pci/devices/" + name;
    const bool display = host.text(folder + "/class").value_or("").starts_with("0x03");
    if (host.text(folder + "/vendor") != "0x10de" || !display) continue;
    gpus.push_back(name);
    if (host.text(folder + "/iommu_group/type").value_or("").starts_with("DMA")) translated = name;
  }
  if (gpus.empty()) return {{"gpu", Level::kOk, "no NVIDIA GPU", ""}};
  Line line{"gpu", Level::kOk, "", ""};
  const std::string found = fmt::format("{} NVIDIA GPU{}", gpus.size(), gpus.size() == 1 ? "" : "s");
  const auto driver = host.text("/proc/driver/nvidia/version");
  if (!driver) {
    return {{"gpu", Level::kFail, found + ", but no driver is loaded", "install the driver; modprobe nvidia"}};
  }
  const std::string kernel = host.text("/proc/sys/kernel/osrelease").value_or("");
  const uint64_t major = leading_number(kernel).value_or(0);
  const uint64_t minor =
      leading_number(std::string_view(kernel).substr(std::min(kernel.find('.'), kernel.size() - 1) + 1)).value_or(0);
  const bool dma_buf =
      driver->find("Open Kernel Module") != std::string::npos && (major > 5 || (major == 5 && minor >= 12));
  const bool peermem = host.has("/sys/module/nvidia_peermem");
  if (dma_buf || peermem) {
    line.text = found + (dma_buf ? "; RDMA reaches their memory through dma-buf"
                                 : "; RDMA reaches their memory through nvidia-peermem");
  } else if (rdma_devices(host).empty()) {
    line.text = found + "; no RDMA device that could reach their memory";
  } else {
    line.level = Level::kWarn;
    line.text = found + ", but RDMA cannot reach their memory: it is copied through the host's";
    line.cure = "modprobe nvidia-peermem; or the open kernel modules of the driver, on Linux 5.12 or later (dma-buf)";
  }
  Lines lines{line};
  if (!translated.empty()) {
    lines.push_back(
        {"gpu", Level::kWarn, "the IOMMU translates each access of the GPU " + translated, "boot with iommu=pt"});
  }
  return lines;
}

}  // namespace genie::doctor
