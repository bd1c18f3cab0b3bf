// RDMA devices as the kernel shows them, gathered once for the checks.
//
// Thread-safety: any thread. Ownership: values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/doctor/host.h"

namespace genie::doctor {

struct Gid {
  uint32_t index = 0;
  std::string address;    // fe80:0000:...
  std::string type;       // "RoCE v2", "IB/RoCE v1"
  std::string interface;  // of the network; empty for InfiniBand
};

struct RdmaPort {
  std::string device;
  std::string port;
  std::string state;       // "4: ACTIVE"
  std::string phys_state;  // "5: LinkUp"
  std::string rate;        // "100 Gb/sec (4X EDR)"
  bool ethernet = false;
  uint64_t lid = 0;
  std::vector<Gid> gids;  // those that are set

  bool active() const noexcept { return state.starts_with("4:"); }
  std::string name() const { return device + " port " + port; }
};

struct RdmaDevice {
  std::string name;
  std::string uverbs;      // its file in /dev/infiniband; empty when the kernel names none
  std::string iommu_type;  // "identity", "DMA", ...; empty when no IOMMU stands before it
  std::string numa_node;   // "0"; "-1" or empty when unknown
  std::vector<RdmaPort> ports;
};

std::vector<RdmaDevice> rdma_devices(const Host& host);

// The GID that peers on any subnet reach: RoCE v2 with an IPv4 address, then with a routed IPv6 address, then a link-local
// one, then RoCE v1; on InfiniBand the first. Null when there is none.
const Gid* best_gid(const RdmaPort& port);
const char* gid_kind(const Gid& gid) noexcept;

}  // namespace genie::doctor
