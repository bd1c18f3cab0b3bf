// The attendant of a RemoteCore whose transport wants to be polled: it does so while nobody else waits for the node, so that
// the node can fetch what was handed over to it, and knows that this process lives.
//
// It never sleeps with the core's mutex held, so that it costs a submission nothing: it arms the transport, lets the mutex go
// and sleeps on a descriptor. While somebody else polls it only looks now and then whether that is still so.
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "src/session/remote_core.h"

namespace genie::session {
namespace {

constexpr int kNapMs = 10;        // while somebody else polls
constexpr int kLongestMs = 500;   // without any event: the transport has deadlines of its own
constexpr int kTurnsAtOnce = 64;  // polls before others get the mutex

}  // namespace

void RemoteCore::call_attendant() noexcept {
  if (!call_fd_.valid()) return;
  const uint64_t one = 1;
  while (::write(call_fd_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

// True when there may be more to do at once; otherwise `armed` is what to sleep on.
bool RemoteCore::attend_once(int& armed) {
  if (contenders_.load(std::memory_order_relaxed) != 0 || !mutex_.try_lock()) return false;
  bool moved = true;
  for (int turn = 0; turn < kTurnsAtOnce && moved; ++turn) moved = poll_locked();
  if (failure_.ok() && !moved) armed = transport_->arm();
  mutex_.unlock();
  return moved || armed < 0;
}

void RemoteCore::attend() {
  uint64_t seen = 0;
  while (!ended_.load(std::memory_order_acquire)) {
    int armed = -1;
    int timeout_ms = kNapMs;
    if (polls_.load(std::memory_order_relaxed) == seen) {
      const bool more = attend_once(armed);
      timeout_ms = armed >= 0 ? kLongestMs : more ? 0 : kNapMs;
    }
    seen = polls_.load(std::memory_order_relaxed);
    std::array<pollfd, 2> watched{{{call_fd_.get(), POLLIN, 0}, {armed, POLLIN, 0}}};
    (void)::poll(watched.data(), armed >= 0 ? 2 : 1, timeout_ms);
    if ((watched[0].revents & POLLIN) == 0) continue;
    uint64_t calls;
    (void)!::read(call_fd_.get(), &calls, sizeof(calls));
    seen = polls_.load(std::memory_order_relaxed);
  }
}

}  // namespace genie::session
