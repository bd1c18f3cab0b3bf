// What memory processes have, as the kernel counts it.
//
// Purpose: proportional set sizes: a page that several processes map counts for each of them as its part, so that their sum counts
//   every page once.
// Thread-safety: PeakMemory has a thread of its own; its functions belong to the thread that made it.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace genie::bench {

inline constexpr double kMegabyte = 1e6;

// Zero once the process has gone.
uint64_t pss_bytes(pid_t process);
// What it maps and has, shared pages in full.
uint64_t resident_bytes(pid_t process);

// Looks every few milliseconds at what some processes have together, until it is asked for the most.
class PeakMemory {
 public:
  explicit PeakMemory(std::vector<pid_t> processes);
  ~PeakMemory() { (void)stop(); }
  PeakMemory(const PeakMemory&) = delete;
  PeakMemory& operator=(const PeakMemory&) = delete;

  // Ends the looking. The most that was seen, in bytes.
  uint64_t stop();

 private:
  void look();

  const std::vector<pid_t> processes_;
  std::atomic<bool> stopping_{false};
  uint64_t peak_ = 0;
  std::thread looker_;
};

}  // namespace genie::bench
