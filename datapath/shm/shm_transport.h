// The shared-memory transport: processes of one machine.
//
// Purpose: a Transport whose regions are memfds that are sealed against resizing and passed over its unix socket; a write is
//   one pass over the bytes, straight into the peer's memory. The listening side makes what both share; memory that changes
//   sides is made by its giver, and its taker looks at the seals. The socket's hang-up is the liveness signal. Addresses are
//   "unix:/path.sock".
// Thread-safety, ownership: as in datapath/transport.h. connect(), and on the connecting side allocate() and
//   import_region(), block until the listener's poll() has answered, within their deadline.
// Lifetime of memory: a Region and a mapped RemoteRegion stay readable and writable until they are released, handed over or
//   dropped, or the transport ends, even when their endpoint has ended before. A buffer from take() outlives all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "datapath/transport.h"

namespace genie::datapath {

struct ShmOptions {
  // Limits of the listening side; beyond them a client gets kQuotaExceeded. A region costs a file descriptor, so no
  // endpoint gets more regions than half of the descriptors that the others left either.
  size_t max_endpoints = 4096;
  size_t max_regions_per_endpoint = 65536;
  size_t max_bytes_per_endpoint = size_t{64} << 30;
  size_t max_bytes_in_total = 0;  // 0: half of the machine's memory
  // By default only processes of the same user, or root, may connect.
  bool allow_other_users = false;
  // Bytes of one transfer that are copied before other work gets its turn.
  size_t chunk_bytes = size_t{256} << 10;
  // Posted operations that wait, per endpoint and class, and completions that nobody fetched; beyond: kAgain.
  size_t max_pending_ops = 256;
  size_t max_completions = 4096;
  // For requests to the listener that have no deadline of their own, and for a client that connects and says nothing.
  uint64_t control_timeout_ms = 10'000;
};

std::unique_ptr<Transport> make_shm_transport(const ShmOptions& options = {});

}  // namespace genie::datapath
