// NetTransport: a Transport over any Fabric.
//
// Purpose: connections, keys, order, credits, deadlines and liveness, once for all networks. A TCP socket beside the lanes
//   carries the handshake and everything about memory; addresses are "tcp://host:port".
// Order across the socket and the lanes: each message names the last frame that was sent before it, and is delivered when
//   that frame has been carried out. So a key is known before a message can name it, and memory that was handed over has
//   come before a message that tells of it.
// Memory that is handed over is pulled: the receiving engine reads it, chunk by chunk, into fresh memory of its own, as soon
//   as it hears of it; what is small comes in the frame itself.
// Release of a region: its memory stays until the peer has said that nothing of its is on the way to it, or is gone.
// Liveness: a peer that is not heard of for NetOptions::liveness_ms is given up. So both sides must poll: who cannot, must
//   have a thread do it (Capabilities::needs_polling).
// Thread-safety, ownership: as in datapath/transport.h. connect(), and on the connecting side allocate() and
//   import_region(), block until the listener's poll() has answered, within their deadline.
// Trust: a process that was admitted can, with a library that writes memory by software (UCX over shared memory, or UCX's
//   own protocols over TCP, which the fabric does not use), write beyond the regions that it was told of: such lanes are for
//   peers that are trusted, or for a network that is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "datapath/net/fabric.h"
#include "datapath/transport.h"

namespace genie::datapath {

struct NetOptions {
  // Limits of the listening side; beyond them a client gets kQuotaExceeded.
  size_t max_endpoints = 4096;
  size_t max_regions_per_endpoint = 65536;
  size_t max_bytes_per_endpoint = size_t{64} << 30;
  size_t max_bytes_in_total = 0;  // 0: half of the machine's memory
  // Posted operations that wait, per endpoint and class, and completions that nobody fetched; beyond: kAgain.
  size_t max_pending_ops = 256;
  size_t max_completions = 4096;
  // For requests to the listener that have no deadline of their own, and for a client that connects and says nothing.
  uint64_t control_timeout_ms = 10'000;
  // A peer that is silent for so long has gone; 0: it may be silent for ever.
  uint64_t liveness_ms = 5'000;
};

std::unique_ptr<Transport> make_net_transport(std::unique_ptr<net::Fabric> fabric, const NetOptions& options);

}  // namespace genie::datapath
