// The doctor: can this machine run a node, over which transports, and what stands in the way of speed?
//
// Purpose: looks at a host through the files of Linux alone (host.h), so that it needs no device's library and finds out
//   why one does not work. Each check answers lines of three levels; what is not ok says what to do.
// Thread-safety: any thread. Ownership: values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/doctor/host.h"

namespace genie::doctor {

enum class Level : uint8_t {
  kOk,
  kWarn,  // it works, but slower or with less than could be
  kFail,  // what was asked for does not work
};

const char* level_name(Level level) noexcept;  // "ok", "warn", "fail"

struct Line {
  std::string check;  // stable: "memlock", "rdma.link", ...
  Level level = Level::kOk;
  std::string text;  // what was found
  std::string cure;  // what to do; empty when ok
};

using Lines = std::vector<Line>;

// What the host is wanted for.
struct Purpose {
  std::string transport = "auto";  // or names; what only another transport needs is never a failure
  bool wants(std::string_view name) const {
    return (',' + transport + ',').find(',' + std::string(name) + ',') != std::string::npos;
  }
  std::vector<std::string> listen;  // unix:/path.sock, tcp://host:port
  bool busy_polling = false;
  uint32_t threads = 0;       // of one operation; 0: the device's default
  std::string torch_version;  // that this build was made for; empty: not checked
};

// Every check, in the order in which they are printed.
Lines examine(const Host& host, const Purpose& purpose);
Level worst(const Lines& lines) noexcept;

// The single checks.
Lines check_hugepages(const Host& host);
Lines check_memlock(const Host& host, const Purpose& purpose);
Lines check_memory(const Host& host);
Lines check_shm(const Host& host);
Lines check_fds(const Host& host);
Lines check_cores(const Host& host, const Purpose& purpose);
Lines check_ports(const Host& host, const Purpose& purpose);
Lines check_rdma(const Host& host, const Purpose& purpose);  // devices, links, GIDs, MTU, IOMMU, NUMA
Lines check_gpu(const Host& host);                           // peermem and dma-buf
Lines check_versions(const Host& host, const Purpose& purpose);
Lines check_transport(const Purpose& purpose);

// `capability`'s bit in the effective set of the process.
bool has_capability(const Host& host, unsigned capability);
inline constexpr unsigned kCapNetBindService = 10;
inline constexpr unsigned kCapIpcLock = 14;

}  // namespace genie::doctor
