#include "datapath/base/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <cstdlib>
#include <memory>

namespace genie::log {
namespace {

std::shared_ptr<spdlog::logger> make_logger() {
  auto made = std::make_shared<spdlog::logger>("genie", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %L genie[%P] %v");
  const char* wanted = std::getenv("GENIE_LOG");
  made->set_level(wanted == nullptr ? spdlog::level::warn : spdlog::level::from_str(wanted));
  made->flush_on(spdlog::level::trace);
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
