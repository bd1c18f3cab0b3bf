// The peers that are programs of their own: ucx_perftest for UCX, perftest (ib_write_bw and its sisters) for verbs.
//
// Purpose: one run of such a program between two processes on this machine, each on a core of its own as ours are, and
//   what it printed. They take UCX_* variables from the environment, as our transport does.
// Thread-safety: one thread. Ownership: both processes are over when a function returns or throws.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "bench/transfer/partnership.h"

namespace genie::bench {

enum class Figure : uint8_t { kBandwidth, kLatency, kMessageRate, kCpuPerByte };

struct OutsideRun {
  std::string transport;  // "ucx", "verbs"
  Figure figure = Figure::kBandwidth;
  TransferOp op = TransferOp::kWrite;
  size_t bytes = 0;
  size_t count = 0;
};

// "ucx_perftest", "perftest"; empty where there is none for the transport, or it is not installed.
std::string outside_peer(const std::string& transport);
// GB/s, microseconds (one way, the whole of reads; the median), millions of messages a second, or nanoseconds of both
// processes' CPU time per byte while they sleep whenever there is nothing to do. Throws std::runtime_error with the program's last
// words when it fails twice.
double run_outside(const OutsideRun& run);

// What the program's output says, for the tests.
std::optional<double> parse_ucx_perftest(const std::string& output, Figure figure);
std::optional<double> parse_perftest(const std::string& output, Figure figure);

}  // namespace genie::bench
