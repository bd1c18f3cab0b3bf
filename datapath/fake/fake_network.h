// FakeNetwork: transports of one process, joined by a network that exists only in a virtual clock.
//
// Purpose: to run the real engines above a Transport with every delay, loss and disconnect that a seed can think of, and
//   to get the same run again from the same seed. It holds the contract of datapath/transport.h, with no memory mapped
//   by the peer and with registration of any memory: the opposite of shm where the contract leaves a choice.
// Thread-safety: none: the network and all its transports belong to one thread. wake() may be called from any thread.
// Time: stands still until advance() or a wait(). Deadlines are points on this clock: use after_ms(), not Deadline's.
// Ownership: transports keep the network's core alive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "datapath/transport.h"

namespace genie::datapath {

// What may go wrong, drawn per operation from the seed. Probabilities are 0 to 1.
struct FaultPolicy {
  uint64_t seed = 1;
  uint64_t delay_ns_min = 1'000;
  uint64_t delay_ns_max = 1'000;
  // The operation is lost and its class stands still: the endpoint fails when its deadline passes.
  double drop = 0;
  // The operation is late, by up to a hundred times the longest delay: other classes and endpoints overtake it.
  double reorder = 0;
  // The connection breaks when the operation should have arrived.
  double disconnect = 0;
};

struct FakeOptions {
  FaultPolicy faults;
  double bytes_per_ns = 10;
};

// Of the transport that listens, as ShmOptions has them.
struct FakeLimits {
  size_t max_endpoints = 4096;
  size_t max_regions_per_endpoint = 65536;
  size_t max_bytes_per_endpoint = size_t{1} << 30;
  size_t max_pending_ops = 256;
  size_t max_unread_messages = 64;
};

class FakeNetwork {
 public:
  // Says its seed in the log, so that a failed run can be repeated.
  explicit FakeNetwork(const FakeOptions& options = {});

  // Addresses are "fake:NAME".
  std::unique_ptr<Transport> make_transport(const FakeLimits& limits = {});

  uint64_t now_ns() const noexcept;
  Deadline after_ms(uint64_t ms) const noexcept;
  // Lets time pass until the next operation arrives or the next deadline is over; false when nothing is on its way.
  bool advance();

  class Core;

 private:
  std::shared_ptr<Core> core_;
};

}  // namespace genie::datapath
