// The two places where an end-to-end bench runs: a genie-node process over shared memory, and this process.
//
// Thread-safety: one thread. Ownership: a RemotePlace ends its session, then its node.
#pragma once

#include <ATen/Parallel.h>
#include <genie/genie.h>

#include "bench/harness/node_process.h"

namespace genie::bench {

// Intra-op threads of either side. One: on a machine with two cores the other belongs to the node's (or client's) own work.
inline constexpr int kThreads = 1;

class RemotePlace {
 public:
  RemotePlace() : node_(kThreads), session_(Session::connect(node_.uri())) { at::set_num_threads(kThreads); }
  at::Device device() const { return session_.device(); }
  std::string transport() const { return session_.transport(); }
  void synchronize() const { session_.synchronize(); }

 private:
  NodeProcess node_;
  Session session_;
};

}  // namespace genie::bench
