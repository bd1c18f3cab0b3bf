// The verbs fabric: RDMA devices (InfiniBand, RoCE) under the network engine.
//
// Purpose: a Fabric of reliable connected queue pairs, one for each lane on each rail; a rail is a pair of device ports,
//   one of each end. Transfers are RDMA writes and reads, messages are writes with immediate into a ring of the peer.
//   Transfers of the bulk lane are spread over all rails by chunk; a rail that fails hands its work to the others.
// Addresses travel with the engine's own connection and not by the RDMA connection manager's: that one handshake then
//   serves all rails and lanes, needs no service of its own, and its hang-up tells of a killed peer at once. The connection
//   manager is asked for one thing, which device and address lead to a host, because the kernel's routes know it best.
// Isolation: every link has a protection domain of its own on each device. A key is good for one link: a peer that guesses
//   another's key gets nothing.
// Thread-safety, ownership: as in datapath/net/fabric.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "datapath/net/fabric.h"
#include "datapath/net/net_transport.h"
#include "genie/status.h"

namespace genie::datapath {

struct VerbsOptions {
  NetOptions net;
  // "mlx5_0,mlx5_2:1" (port 1 where none is said); empty: every port that is up, the fastest first, then those near
  // the thread that makes the fabric.
  std::string devices;
  size_t rails_max = 4;
  // The entry of the port's table of addresses; -1: chosen by rule (rules.h).
  int gid_index = -1;
  // Of the path, in bytes; 0: what both ports can.
  size_t mtu_bytes = 0;
  uint8_t traffic_class = 0;
  uint8_t service_level = 0;
  // A packet that is not acknowledged is sent again after 4.096 us * 2^retry_timeout, retry_count times: with these a dead
  // path is noticed after one to four seconds, within the engine's bound for a dead peer.
  uint8_t retry_timeout = 15;
  uint8_t retry_count = 7;
  // Lets the PCIe bus reorder the writes of one transfer where processor and device can; completions stay in order.
  bool relaxed_ordering = true;
  size_t chunk_bytes = size_t{256} << 10;
};

// Whether this build has it; without, the functions below answer kConfig.
bool verbs_compiled_in() noexcept;
// Whether this machine has a port that is up, of those that are meant.
bool verbs_usable(const VerbsOptions& options = {});

// kUnsupported where there is no device that is up, kConfig for a device that is not there; both say what to do.
Result<std::unique_ptr<net::Fabric>> make_verbs_fabric(const VerbsOptions& options);
Result<std::unique_ptr<Transport>> make_verbs_transport(const VerbsOptions& options);

}  // namespace genie::datapath
