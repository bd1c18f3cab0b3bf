// Device: one port of one RDMA device, opened, with the completion queue that all its queue pairs share. Internal to this
// folder.
//
// Thread-safety: none; it belongs to its fabric's thread. Ownership: the fabric's, until all links have gone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "datapath/verbs/handles.h"
#include "datapath/verbs/rules.h"
#include "datapath/verbs/verbs_fabric.h"
#include "genie/status.h"

namespace genie::datapath::verbs {

struct Device {
  std::string name;
  uint8_t port = 1;
  bool ethernet = true;
  bool up = true;
  GidEntry gid;
  uint16_t lid = 0;
  ibv_mtu mtu = IBV_MTU_1024;
  uint64_t megabits = 0;
  int numa_node = -1;
  uint8_t reads_in = 1;   // that peers may have under way towards this device, per queue pair
  uint8_t reads_out = 1;  // and this device towards a peer
  std::vector<GidEntry> gids;

  Handle<ibv_context> context;
  Handle<ibv_comp_channel> channel;
  Handle<ibv_cq> completions;
  int completions_max = 0;
  int completions_reserved = 0;
  unsigned unacknowledged_events = 0;

  ~Device();
  // Reads the port's addresses and chooses one.
  Status read_addresses(int gid_index);
  // "rxe0 port 1, ::ffff:10.0.0.2 (RoCE v2, GID 1), MTU 4096, 10000 Mbit/s".
  std::string describe() const;
  // Room for so many completions more, so that the queue can never overflow; unreserve() gives it back.
  Status reserve(int completions);
  void unreserve(int completions) noexcept { completions_reserved -= completions; }
};

// The devices that the options mean, said in the log; never empty.
Result<std::vector<std::unique_ptr<Device>>> open_devices(const VerbsOptions& options);

// Whether there would be any; says nothing.
bool any_port_is_up(const VerbsOptions& options);

// What leads to a host: device and address, by the kernel's routes. kNotFound where it does not say.
struct Route {
  std::string device;
  uint8_t port = 1;
  Gid gid{};
};
Result<Route> find_route(std::string_view host);

}  // namespace genie::datapath::verbs
