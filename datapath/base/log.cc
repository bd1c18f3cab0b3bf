#include "datapath/base/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <cstdlib>
#include <memory>
#include <string>

namespace genie::log {
namespace {

constexpr const char* kLevels = "trace, debug, info, warn, error or off";

// spdlog takes a word that it does not know for "off".
bool is_level(const std::string& name) { return name == "off" || spdlog::level::from_str(name) != spdlog::level::off; }

std::shared_ptr<spdlog::logger> make_logger() {
  auto made = std::make_shared<spdlog::logger>("genie", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %L genie[%P] %v");
  made->flush_on(spdlog::level::trace);
  const char* const variable = std::getenv("GENIE_LOG");
  const std::string wanted = variable == nullptr ? "" : variable;
  const bool known = is_level(wanted);
  made->set_level(known ? spdlog::level::from_str(wanted) : spdlog::level::warn);
  if (!known && !wanted.empty()) made->warn("GENIE_LOG={} is no level, so this is warn: use {}", wanted, kLevels);
  return made;
}

spdlog::logger& logger() {
  // Leaked on purpose: threads that outlive static destruction may still log.
  static auto* const instance = new std::shared_ptr<spdlog::logger>(make_logger());
  return **instance;
}

spdlog::level::level_enum spd(Level level) {
  switch (level) {
    case Level::kDebug: return spdlog::level::debug;
    case Level::kInfo: return spdlog::level::info;
    case Level::kWarn: return spdlog::level::warn;
    case Level::kError: return spdlog::level::err;
  }
  return spdlog::level::err;
}

}  // namespace

bool enabled(Level level) noexcept { return logger().should_log(spd(level)); }

void write(Level level, std::string_view line) noexcept {
  logger().log(spd(level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace genie::log
