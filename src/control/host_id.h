// Which machine this is: equal on both ends where they share one kernel, so that memory can be shared between them.
//
// Thread-safety: any thread.
#pragma once

#include <string>

namespace genie::control {

// The kernel's boot id; empty where it cannot be read, which is no machine.
const std::string& host_id();

}  // namespace genie::control
