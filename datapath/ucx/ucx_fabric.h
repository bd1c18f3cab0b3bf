// The UCX fabric: whatever transports UCX finds between two processes: TCP, shared memory, RDMA.
//
// Purpose: a net::Fabric over UCP. One worker per fabric; each lane of a link is a UCP endpoint of its own. Messages are
//   active messages that are sent eagerly; so are writes and reads over TCP (ucx_impl.h says why), in order with them.
//   Where a device can, bytes go by ucp_put and ucp_get.
// Settings: UCX_* variables of the environment win. Without them TCP segments are 1 MiB (UCX's default of 8 KiB makes a
//   large put over TCP a hundred times slower).
// Failure: endpoints handle the death of their peer where UCX can do that; over posix and sysv it cannot, and the engine's
//   own signs of life do. There a stopped peer can hold what is in flight to it until it goes on or goes away.
// Trust: over TCP the places that a peer's transfers name are checked; what it says to UCX itself UCX believes. See
//   net/net_transport.h.
// Thread-safety, ownership: as in net/fabric.h.
#pragma once

#include <memory>
#include <string>

#include "datapath/net/fabric.h"
#include "datapath/net/net_transport.h"

namespace genie::datapath {

struct UcxOptions {
  NetOptions net;
  std::string tls;  // UCX_TLS for this fabric: "tcp", "posix,sysv"; empty: the environment's, else what UCX finds
  // "tcp://host:port" that is listened on or connected to: TCP takes the device that leads there, and no other, unless
  // UCX_NET_DEVICES says something else. Empty: any.
  std::string towards;
};

// Whether this build has it; without, the functions below answer kConfig.
bool ucx_compiled_in() noexcept;

// kConfig where UCX has no such transport.
Result<std::unique_ptr<net::Fabric>> make_ucx_fabric(const UcxOptions& options);
Result<std::unique_ptr<Transport>> make_ucx_transport(const UcxOptions& options);

}  // namespace genie::datapath
