// Which NUMA node memory and threads are on, so that transfers may take the device beside them.
//
// Thread-safety: any thread. Cost: a system call or more; for when memory is registered, not for when it moves.
#pragma once

#include <cstddef>

namespace genie::datapath {

inline constexpr int kAnyNode = -1;  // unknown, or several

// Of the page at `memory`, which becomes present when it is not. kAnyNode for memory that is no page of the host.
int numa_node_of_memory(const std::byte* memory) noexcept;

// kAnyNode for a thread that may run on several.
int numa_node_of_this_thread() noexcept;

}  // namespace genie::datapath
