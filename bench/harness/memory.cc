#include "bench/harness/memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <utility>

namespace genie::bench {
namespace {

constexpr useconds_t kLookUs = 5'000;

// A line as "Pss:    1234 kB".
uint64_t of_rollup(pid_t process, const std::string& key) {
  std::ifstream file("/proc/" + std::to_string(process) + "/smaps_rollup");
  std::string word;
  while (file >> word) {
    uint64_t kilobytes = 0;
    if (word == key && file >> kilobytes) return kilobytes << 10;
  }
  return 0;
}

}  // namespace

uint64_t pss_bytes(pid_t process) { return of_rollup(process, "Pss:"); }
uint64_t resident_bytes(pid_t process) { return of_rollup(process, "Rss:"); }

PeakMemory::PeakMemory(std::vector<pid_t> processes) : processes_(std::move(processes)) {
  look();
  looker_ = std::thread([this] {
    while (!stopping_.load(std::memory_order_acquire)) {
      ::usleep(kLookUs);
      look();
    }
  });
}

void PeakMemory::look() {
  uint64_t sum = 0;
  for (const pid_t process : processes_) sum += pss_bytes(process);
  peak_ = std::max(peak_, sum);
}

uint64_t PeakMemory::stop() {
  stopping_.store(true, std::memory_order_release);
  if (looker_.joinable()) looker_.join();
  return peak_;
}

}  // namespace genie::bench
