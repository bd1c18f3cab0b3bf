// The process's log: to stderr, one line per event, level by $GENIE_LOG (trace, debug, info, warn, error, off).
//
// Purpose: one place to configure, and no vendor header in ours: callers format with GENIE_LOG_*.
// Thread-safety: every macro may be used from any thread. Not for hot paths.
// The first detector of an error logs it; its callers don't.
#pragma once

#include <spdlog/spdlog.h>

namespace genie::log {

// The shared logger; created on first use, lives until the process ends.
spdlog::logger& logger();

}  // namespace genie::log

#define GENIE_LOG_DEBUG(...) ::genie::log::logger().debug(__VA_ARGS__)
#define GENIE_LOG_INFO(...) ::genie::log::logger().info(__VA_ARGS__)
#define GENIE_LOG_WARN(...) ::genie::log::logger().warn(__VA_ARGS__)
#define GENIE_LOG_ERROR(...) ::genie::log::logger().error(__VA_ARGS__)
