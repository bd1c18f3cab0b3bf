#include "datapath/memory/numa.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

namespace genie::datapath {
namespace {

bool kernel_tells_nodes() { return ::access("/sys/devices/system/node/node0", F_OK) == 0; }
bool is_node(int node) { return ::access(("/sys/devices/system/node/node" + std::to_string(node)).c_str(), F_OK) == 0; }

TEST(Numa, MemoryOfTheHostIsOnANodeThatIsThere) {
  if (!kernel_tells_nodes()) GTEST_SKIP() << "this kernel tells no NUMA nodes";
  int policy = 0;
  if (::syscall(SYS_get_mempolicy, &policy, nullptr, 0UL, nullptr, 0UL) != 0) {
    GTEST_SKIP() << "get_mempolicy is forbidden here: " << std::strerror(errno);
  }
  const std::vector<std::byte> memory(1 << 20, std::byte{1});
  EXPECT_TRUE(is_node(numa_node_of_memory(memory.data() + 5000)));
  EXPECT_EQ(numa_node_of_memory(nullptr), kAnyNode);
}

TEST(Numa, AThreadOnOneCoreIsOnTheNodeOfIt) {
  if (!kernel_tells_nodes()) GTEST_SKIP() << "this kernel tells no NUMA nodes";
  cpu_set_t before;
  ASSERT_EQ(::sched_getaffinity(0, sizeof(before), &before), 0);
  int core = 0;
  while (!CPU_ISSET(core, &before)) ++core;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  ASSERT_EQ(::sched_setaffinity(0, sizeof(one), &one), 0);
  const int node = numa_node_of_this_thread();
  ASSERT_TRUE(is_node(node)) << node;
  const std::string of_core = "/sys/devices/system/cpu/cpu" + std::to_string(core) + "/node" + std::to_string(node);
  EXPECT_EQ(::access(of_core.c_str(), F_OK), 0) << of_core;
  ASSERT_EQ(::sched_setaffinity(0, sizeof(before), &before), 0);
}

}  // namespace
}  // namespace genie::datapath
