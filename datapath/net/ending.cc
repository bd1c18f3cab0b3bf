// The end of endpoints: goodbyes, deadlines, silence, and what must still come back.
//
//   kOpen --close(), a deadline, a broken link--> kEnding --nothing in flight--> kLingering --link closed--> gone
//   kOpen --the peer's goodbye or hang-up--> kDraining --what it had sent is delivered--> kEnding
// kDisconnected is reported on the way from kEnding to kLingering: after the completions of all operations.
#include <sys/epoll.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/net/transport_impl.h"

namespace genie::datapath::net {
namespace {

// How long messages that were sent may take to leave once their endpoint was closed.
constexpr uint64_t kLingerMs = 2'000;
// How long operations in flight may take to end by themselves before they are flushed by force.
constexpr uint64_t kFlushMs = 200;
constexpr uint64_t kTendMs = 250;
constexpr uint64_t kHastyTendMs = 10;

}  // namespace

Status NetTransport::close(EndpointId id) {
  Endpoint* const endpoint = find(id);
  if (endpoint == nullptr || endpoint->state == EndpointState::kHandshake) {
    return endpoints_.why(id.index, id.generation);
  }
  if (!endpoint->visible()) return Errc::kStale;
  end(*endpoint, Errc::kOk, Errc::kCancelled, true);
  return {};
}

// The link's messages still arrive when `orderly`; everything in flight is flushed otherwise.
void NetTransport::close_link(Endpoint& endpoint, bool orderly) {
  if (endpoint.link == nullptr || endpoint.link_closed || endpoint.link_forced) return;
  if (endpoint.link_closing && orderly) return;
  endpoint.link_closing = true;
  endpoint.link_forced = !orderly;
  fabric_->close(*endpoint.link, orderly);
}

void NetTransport::end(Endpoint& endpoint, Errc cause, Errc flushed, bool orderly) {
  if (endpoint.state == EndpointState::kHandshake) {
    --handshakes_;
    if (endpoint.link == nullptr) return forget(endpoint);
    endpoint.state = EndpointState::kLingering;
    return close_link(endpoint, false);
  }
  if (!endpoint.visible()) return;
  if (endpoint.listener_side) --open_endpoints_;
  shared_regions_ -= endpoint.shared_regions;
  shared_bytes_ -= endpoint.shared_bytes;
  endpoint.shared_regions = endpoint.shared_bytes = 0;
  endpoint.state = EndpointState::kEnding;
  endpoint.cause = cause;
  endpoint.flushed = flushed;
  const uint64_t now = now_ns();
  for (Lane& lane : endpoint.lanes) {
    for (size_t left = lane.queue.size(); left != 0; --left) {
      const SlotId slot = lane.queue.pop();
      Op& op = *ops_.find(slot.index, slot.generation);
      op.result = cause == Errc::kTimedOut && op.deadline_ns <= now ? Errc::kTimedOut : flushed;
      // Those in flight come back with their last descriptor.
      if (op.in_flight == 0) complete(slot, op.result);
    }
    while (!lane.arrivals.empty()) lane.arrivals.pop();
  }
  drop_pulls(endpoint);
  while (!endpoint.handed_over.empty()) endpoint.handed_over.pop();
  if (orderly && !endpoint.said_goodbye && endpoint.socket.open()) {
    std::array<uint32_t, kLaneCount> sent{};
    for (size_t i = 0; i < kLaneCount; ++i) sent[i] = endpoint.lanes[i].sent;
    endpoint.said_goodbye = true;
    transmit(endpoint, Frame{.type = FrameType::kGoodbye}, std::as_bytes(std::span(sent)));
  }
  endpoint.deadline_ns = now + kFlushMs * 1'000'000;
  if (!orderly) close_link(endpoint, false);
  next_tend_ns_ = 0;
  list(endpoint);
}

// The peer has gone, or said so: what it had sent comes first.
void NetTransport::start_draining(Endpoint& endpoint) {
  if (endpoint.state == EndpointState::kHandshake) return end(endpoint, Errc::kDisconnected, Errc::kDisconnected);
  if (endpoint.state != EndpointState::kOpen) return;
  endpoint.state = EndpointState::kDraining;
  endpoint.deadline_ns = now_ns() + kLingerMs * 1'000'000;
  list(endpoint);
}

// Called for endpoints on their way out, as often as something may have changed.
void NetTransport::settle(Endpoint& endpoint) {
  if (endpoint.state == EndpointState::kDraining) {
    bool delivered = true;
    for (size_t i = 0; i < kLaneCount; ++i) {
      const Lane& lane = endpoint.lanes[i];
      const bool missing = endpoint.farewell.has_value() && lane.received != (*endpoint.farewell)[i];
      delivered = delivered && lane.arrivals.empty() && !missing;
    }
    const bool late = endpoint.deadline_ns <= now_ || endpoint.broken.has_value();
    if (!delivered && !late) return;
    if (endpoint.farewell.has_value() && endpoint.socket.open())
      transmit(endpoint, Frame{.type = FrameType::kFarewell});
    return end(endpoint, Errc::kDisconnected, Errc::kDisconnected);
  }
  if (endpoint.state == EndpointState::kEnding) {
    if (endpoint.ops != 0 || !endpoint.pulls.empty()) return;
    completions_.push(Completion{.opcode = Opcode::kDisconnected, .result = endpoint.cause, .endpoint = endpoint.id});
    endpoint.state = EndpointState::kLingering;
    endpoint.deadline_ns = now_ + kLingerMs * 1'000'000;
    // Nothing to wait for: the peer has not got a goodbye that it could answer.
    if (!endpoint.said_goodbye || !endpoint.socket.open()) close_link(endpoint, true);
  }
  if (endpoint.state == EndpointState::kLingering && endpoint.link_closed) forget(endpoint);
}

void NetTransport::forget(Endpoint& endpoint) {
  imports_.for_each([&](SlotId, Import& import) {
    if (import.endpoint == endpoint.id) import.remote.reset();
  });
  const EndpointId id = endpoint.id;
  std::erase_if(spares_, [&](const Spare& spare) { return spare.endpoint == id; });
  endpoints_.erase(id.index, id.generation);  // closes the socket: the peer sees the hang-up
}

// Ends the endpoints of operations whose time is over.
void NetTransport::expire() {
  uint64_t earliest = UINT64_MAX;
  endpoints_.for_each([&](SlotId, Endpoint& endpoint) {
    if (!endpoint.visible() || endpoint.ops == 0) return;
    uint64_t first = UINT64_MAX;
    for (Lane& lane : endpoint.lanes) {
      for (size_t at = 0; at < lane.queue.size(); ++at) {
        const SlotId slot = lane.queue.at(at);
        first = std::min(first, ops_.find(slot.index, slot.generation)->deadline_ns);
      }
    }
    if (first <= now_) return end(endpoint, Errc::kTimedOut, Errc::kDisconnected);
    earliest = std::min(earliest, first);
  });
  earliest_deadline_ns_ = earliest;
}

// Deadlines of handshakes and endings, signs of life.
void NetTransport::tend() {
  // A poller that was away for long has unread signs of life in its sockets.
  const bool was_away = now_ - last_tend_ns_ > options_.liveness_ms * 1'000'000 / 2;
  if (was_away) service_sockets(0);
  last_tend_ns_ = now_;
  bool hasty = false;
  endpoints_.for_each([&](SlotId, Endpoint& endpoint) {
    if (was_away) endpoint.heard_ns = now_;
    hasty = hasty || !endpoint.usable();
    tend_one(endpoint);
  });
  next_tend_ns_ = now_ + (hasty ? kHastyTendMs : kTendMs) * 1'000'000;
}

void NetTransport::tend_one(Endpoint& endpoint) {
  switch (endpoint.state) {
    case EndpointState::kHandshake:
      if (endpoint.deadline_ns <= now_) end(endpoint, Errc::kTimedOut, Errc::kTimedOut);
      return;
    case EndpointState::kEnding:
      if (endpoint.deadline_ns <= now_) close_link(endpoint, false);
      return settle(endpoint);
    case EndpointState::kLingering:
      if (endpoint.deadline_ns <= now_) close_link(endpoint, false);
      return settle(endpoint);
    case EndpointState::kDraining: return settle(endpoint);
    case EndpointState::kOpen: break;
  }
  if (!endpoint.described && endpoint.lanes_ready) {
    endpoint.described = true;
    GENIE_LOG_INFO("{}: {} is reached over {}", info_.name, endpoint.peer, fabric_->describe(*endpoint.link));
  }
  if (options_.liveness_ms == 0) return;
  const uint64_t bound_ns = options_.liveness_ms * 1'000'000;
  const uint64_t silent_ns = now_ - std::min(now_, endpoint.heard_ns);
  if (silent_ns >= bound_ns) {
    GENIE_LOG_WARN("{}: nothing was heard of {} for {} ms; it is given up", info_.name, endpoint.peer,
                   options_.liveness_ms);
    if (!endpoint.listener_side) note_failure(endpoint.peer);
    return end(endpoint, Errc::kDisconnected, Errc::kDisconnected);
  }
  constexpr uint64_t kSignsPerBound = 4;
  if (silent_ns < bound_ns / kSignsPerBound || now_ - endpoint.pinged_ns < bound_ns / kSignsPerBound) return;
  endpoint.pinged_ns = now_;
  transmit(endpoint, Frame{.type = FrameType::kPing});
}

}  // namespace genie::datapath::net
