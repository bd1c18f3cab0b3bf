#include "frontend/capture/timing.h"

#include "frontend/capture/env.h"

namespace genie::frontend {

std::atomic<bool> timing_flag{env_switch("GENIE_TIME_OPS", false)};

}  // namespace genie::frontend
