// Waiting on descriptors, to the nanosecond.
//
// Thread-safety: any thread. Ownership: descriptors stay the caller's.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <span>

#include "datapath/base/clock.h"
#include "genie/status.h"

namespace genie::datapath {

// Until one of poll's `events` has come to `fd`; kTimedOut.
Status wait_ready(int fd, short events, Deadline deadline);

// As epoll_wait does, also for less than a millisecond where the kernel can.
int wait_for_events(int epoll, std::span<epoll_event> events, uint64_t timeout_ns);

}  // namespace genie::datapath
