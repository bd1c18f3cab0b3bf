#include "datapath/memory/numa.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

namespace genie::datapath {
namespace {

constexpr int kNodesMax = 64;  // more are not looked for

int node_of_cpu(int cpu) {
  const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/node";
  for (int node = 0; node < kNodesMax; ++node) {
    if (::access((folder + std::to_string(node)).c_str(), F_OK) == 0) return node;
  }
  return kAnyNode;
}

}  // namespace

int numa_node_of_memory(const std::byte* memory) noexcept {
  int node = kAnyNode;
  const long failed = ::syscall(SYS_get_mempolicy, &node, nullptr, 0UL, memory, MPOL_F_NODE | MPOL_F_ADDR);
  return failed == 0 ? node : kAnyNode;
}

int numa_node_of_this_thread() noexcept {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return kAnyNode;
  int found = kAnyNode;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const int node = node_of_cpu(cpu);
    if (node == kAnyNode || (found != kAnyNode && node != found)) return kAnyNode;
    found = node;
  }
  return found;
}

}  // namespace genie::datapath
