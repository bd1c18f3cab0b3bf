// Where a bench's remote side runs: a genie-node process, or a node within this process.
//
// Purpose: started by whoever first needs it, so that rows which nobody wants cost nothing. With kOwnCores each side has a core
//   of its own where there are two: the node the second, and this program, local eager with it, the first.
// Thread-safety: one thread. Ownership: a RemotePlace ends its session, then its node.
#pragma once

#include <genie/genie.h>
#include <unistd.h>

#include <optional>
#include <string>

#include "bench/harness/node_process.h"

namespace genie::bench {

// Intra-op threads of either side.
inline constexpr int kThreads = 1;

enum class Cores : uint8_t { kShared, kOwnCores };

class RemotePlace {
 public:
  // A transport of genie-node, or "embedded".
  explicit RemotePlace(std::string transport, Cores cores = Cores::kOwnCores)
      : transport_(std::move(transport)), cores_(cores) {}

  const std::string& transport() const noexcept { return transport_; }
  const Session& session();
  // This one where the node lives in it.
  pid_t node_process() {
    (void)session();
    return node_ ? node_->process() : ::getpid();
  }
  at::Device device() { return session().device(); }

 private:
  const std::string transport_;
  const Cores cores_;
  std::optional<NodeProcess> node_;
  std::optional<Session> session_;
};

}  // namespace genie::bench
