// Timing: where the client's time goes, by operator.
//
// Purpose: off unless the program asks for it (genie::set_timing, GENIE_TIME_OPS=1); a captured operator then reads the clock
//   four times, a flush twice.
// Thread-safety: any thread; the sums are relaxed atomics.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace genie::frontend {

enum class Phase : uint8_t {
  kDispatch,  // from the kernel's entry until the arguments are words
  kShape,     // what the results look like, with the wait for the node where only it knows
  kRecord,    // results made, order with other streams, appended
  kPlan,      // this operator's share of its flush, up to the submission
  kCount,
};

struct OpTimes {
  std::atomic<uint64_t> calls{0};
  std::array<std::atomic<uint64_t>, static_cast<size_t>(Phase::kCount)> sums_ns{};

  void add(Phase phase, uint64_t ns) noexcept {
    if (phase == Phase::kDispatch) calls.fetch_add(1, std::memory_order_relaxed);
    sums_ns[static_cast<size_t>(phase)].fetch_add(ns, std::memory_order_relaxed);
  }
  uint64_t of(Phase phase) const noexcept {
    return sums_ns[static_cast<size_t>(phase)].load(std::memory_order_relaxed);
  }
};

extern std::atomic<bool> timing_flag;
inline bool is_timing() noexcept { return timing_flag.load(std::memory_order_relaxed); }

}  // namespace genie::frontend
