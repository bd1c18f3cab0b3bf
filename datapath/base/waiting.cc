#include "datapath/base/waiting.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <ctime>

namespace genie::datapath {
namespace {

timespec to_timespec(uint64_t ns) {
  return {static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
}

}  // namespace

Status wait_ready(int fd, short events, Deadline deadline) {
  for (;;) {
    pollfd entry{fd, events, 0};
    const timespec timeout = to_timespec(deadline.left_ns());
    const int ready = ::ppoll(&entry, 1, &timeout, nullptr);
    if (ready > 0) return {};
    if (ready == 0) return Errc::kTimedOut;
    if (errno != EINTR) return Errc::kIo;
  }
}

int wait_for_events(int epoll, std::span<epoll_event> events, uint64_t timeout_ns) {
  const timespec timeout = to_timespec(timeout_ns);
  const auto limit = static_cast<int>(events.size());
  const int ready = ::epoll_pwait2(epoll, events.data(), limit, &timeout, nullptr);
  if (ready >= 0 || errno != ENOSYS) return ready;
  const uint64_t timeout_ms = std::min<uint64_t>((timeout_ns + 999'999) / 1'000'000, INT32_MAX);
  return ::epoll_wait(epoll, events.data(), limit, static_cast<int>(timeout_ms));
}

}  // namespace genie::datapath
