#include "datapath/ucx/ucx_log.h"

#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <mutex>

#include "datapath/base/log.h"

namespace genie::datapath::ucx {
namespace {

thread_local int quiet = 0;

// A process that has UCX among its libraries gets handlers of UCX for the signals of its crashes, used or not: they are
// given back to whoever has the process. More than one library of a process may do so: what UCX says to the second is lost.
[[maybe_unused]] const bool signals_given_back = [] {
  ucs_log_push_handler([](const char*, unsigned, const char*, ucs_log_level_t, const ucs_log_component_config_t*,
                          const char*, va_list) { return UCS_LOG_FUNC_RC_STOP; });
  for (const int signal : {SIGILL, SIGSEGV, SIGBUS, SIGFPE}) ucs_debug_disable_signal(signal);
  ucs_log_pop_handler();
  return true;
}();

ucs_log_func_rc_t to_our_log(const char*, unsigned, const char*, ucs_log_level_t level,
                             const ucs_log_component_config_t*, const char* format, va_list arguments) {
  if (level > UCS_LOG_LEVEL_WARN || level == UCS_LOG_LEVEL_FATAL) return UCS_LOG_FUNC_RC_CONTINUE;
  std::array<char, 512> text{};
  va_list copy;
  va_copy(copy, arguments);
  (void)std::vsnprintf(text.data(), text.size(), format, copy);
  va_end(copy);
  GENIE_LOG_AT(quiet != 0 ? log::Level::kDebug : log::Level::kInfo, "UCX: {}", text.data());
  return UCS_LOG_FUNC_RC_STOP;
}

}  // namespace

void take_over_ucx_log() {
  static std::once_flag once;
  std::call_once(once, [] { ucs_log_push_handler(&to_our_log); });
}

QuietUcx::QuietUcx() noexcept { ++quiet; }
QuietUcx::~QuietUcx() { --quiet; }

}  // namespace genie::datapath::ucx
