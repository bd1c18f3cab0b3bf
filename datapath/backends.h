// Which transports this build has.
//
// Purpose: the one place where a transport is chosen by name; everybody else knows only the interface.
// Thread-safety: any thread. Ownership: the caller owns the transport.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "datapath/transport.h"
#include "genie/status.h"

namespace genie::datapath {

struct BackendOptions {
  uint64_t control_timeout_ms = 10'000;
  size_t max_bytes_per_endpoint = SIZE_MAX;  // shared with one peer
  uint64_t liveness_ms = 5'000;              // of networks: a peer that is silent for so long has gone; 0: never
  std::string ucx_tls;                       // UCX_TLS for this transport alone; empty: the environment's
  std::string towards;                       // the network address that is listened on or connected to; may be empty
  std::string verbs_devices;                 // "mlx5_0,mlx5_2:1"; empty: every RDMA port that is up
};

// Best first.
inline constexpr std::array<std::string_view, 3> kBackendRanks = {"shm", "verbs", "ucx"};

// Those of this build, best first.
const std::vector<std::string>& compiled_backends();
// What there is, for people: "shm, ucx, or auto".
std::string backend_names();

// The transports of a list such as "shm,ucx", best first; "auto": all that are compiled in. kConfig, with the names that there
// are, for one that is unknown or not compiled in.
Result<std::vector<std::string>> parse_backends(std::string_view list);

// `name`: of one. Errors of its library; kUnsupported where this machine has no device for it.
Result<std::unique_ptr<Transport>> make_backend(std::string_view name, const BackendOptions& options);

}  // namespace genie::datapath
