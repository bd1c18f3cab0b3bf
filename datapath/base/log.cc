#include "datapath/base/log.h"

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

}  // namespace

spdlog::logger& logger() {
  // Leaked on purpose: threads that outlive static destruction may still log.
  static auto* const instance = new std::shared_ptr<spdlog::logger>(make_logger());
  return **instance;
}

}  // namespace genie::log
