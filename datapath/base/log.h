// The process's log: to stderr, one line per event, level by $GENIE_LOG (trace, debug, info, warn, error, off).
//
// Purpose: one place to configure. The logging library stays in log.cc; callers format with fmt through GENIE_LOG_*.
// Thread-safety: every macro may be used from any thread. Not for hot paths.
// The first detector of an error logs it; its callers don't.
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace genie::log {

enum class Level { kDebug, kInfo, kWarn, kError };

bool enabled(Level level) noexcept;
void write(Level level, std::string_view line) noexcept;

}  // namespace genie::log

#define GENIE_LOG_AT(level, ...)                                                              \
  do {                                                                                        \
    if (::genie::log::enabled(level)) ::genie::log::write(level, ::fmt::format(__VA_ARGS__)); \
  } while (false)
#define GENIE_LOG_DEBUG(...) GENIE_LOG_AT(::genie::log::Level::kDebug, __VA_ARGS__)
#define GENIE_LOG_INFO(...) GENIE_LOG_AT(::genie::log::Level::kInfo, __VA_ARGS__)
#define GENIE_LOG_WARN(...) GENIE_LOG_AT(::genie::log::Level::kWarn, __VA_ARGS__)
#define GENIE_LOG_ERROR(...) GENIE_LOG_AT(::genie::log::Level::kError, __VA_ARGS__)
