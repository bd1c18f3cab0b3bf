// poll() and wait(): the event loop, and what the fabric tells.
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/base/waiting.h"
#include "datapath/net/transport_impl.h"

namespace genie::datapath::net {
namespace {

// A busy poller looks at its sockets (a system call, as long as a small message takes) only now and then: they carry no data.
constexpr uint64_t kSocketCheckNs = 20'000;
// Messages of one endpoint before others get their turn.
constexpr int kReceivesPerTurn = 32;
// Looks at the fabric while it moves, before everything else gets its turn; a turn that moved much may have been long.
constexpr int kFabricTurns = 8;
constexpr uint64_t kFabricTurnsNs = 20'000;

}  // namespace

size_t NetTransport::poll(std::span<Completion> out) {
  now_ = now_ns();
  message_came_ = false;
  something_ended_ = false;
  for (int turn = 0; turn < kFabricTurns && completions_.size() < out.size() && fabric_->poll(*this); ++turn) {
    // Somebody waits for it, or for what has ended.
    if (message_came_ || (something_ended_ && now_ns() - now_ > kFabricTurnsNs)) break;
  }
  if (now_ >= next_sockets_ns_ || socket_wanted_) service_sockets(0);
  if (now_ >= earliest_deadline_ns_) expire();
  if (now_ >= next_tend_ns_) tend();
  size_t filled = 0;
  const auto drain = [&] {
    while (filled < out.size() && !completions_.empty()) out[filled++] = completions_.pop();
  };
  drain();
  looking_.swap(listed_);
  for (const EndpointId id : looking_) {
    Endpoint* endpoint = find(id);
    if (endpoint == nullptr) continue;
    endpoint->listed = false;
    look_after(*endpoint);
    endpoint = find(id);
    if (endpoint != nullptr) deliver(*endpoint, out, filled);
    // What ends with this delivery ends now.
    if ((endpoint = find(id)) != nullptr && !endpoint->usable()) settle(*endpoint);
  }
  looking_.clear();
  drain();
  return filled;
}

// The endpoint may be gone afterwards.
void NetTransport::look_after(Endpoint& endpoint) {
  if (endpoint.frames_left) {
    const EndpointId id = endpoint.id;
    service(endpoint);
    if (find(id) == nullptr) return;
  }
  if (endpoint.broken.has_value() && endpoint.state == EndpointState::kOpen) {
    const Errc why = *endpoint.broken;
    // What the peer had sent before its link broke is in the arrivals.
    if (why == Errc::kDisconnected) {
      start_draining(endpoint);
    } else {
      end(endpoint, why, why);
    }
  }
  if (endpoint.broken.has_value() && !endpoint.visible()) close_link(endpoint, false);
  finish_pulls(endpoint);
  if (endpoint.visible()) advance_pulls(endpoint);
  if (!endpoint.usable() || !endpoint.lanes_ready) return;
  for (size_t lane = 0; lane < kLaneCount; ++lane) {
    post_transfers(endpoint, lane);
    finish_front(endpoint, lane);
  }
  if (endpoint.ops != 0 || !endpoint.pulls.empty()) list(endpoint);
}

bool NetTransport::deliverable(Endpoint& endpoint, Arrival& arrival) {
  return static_cast<int32_t>(frames_done(endpoint) - arrival.after) >= 0;
}

void NetTransport::deliver(Endpoint& endpoint, std::span<Completion> out, size_t& filled) {
  if (!endpoint.visible()) return;
  int taken = 0;
  bool left = false;
  for (Lane& lane : endpoint.lanes) {
    while (!lane.arrivals.empty()) {
      left = true;
      // What was queued before, the connection itself first of all, comes out before new messages.
      if (filled == out.size() || !completions_.empty() || taken == kReceivesPerTurn) break;
      Arrival& arrival = lane.arrivals.front();
      if (!deliverable(endpoint, arrival)) {
        socket_wanted_ = true;
        break;
      }
      Completion& completion = out[filled++];
      completion = Completion{.immediate = arrival.immediate, .endpoint = endpoint.id};
      if (arrival.kind == MessageKind::kMessage) {
        completion.opcode = Opcode::kReceive;
        completion.buffer = std::move(arrival.buffer);
        ++counters_.messages_received;
      } else {
        completion.opcode = Opcode::kNotified;
      }
      lane.arrivals.pop();
      ++lane.consumed;
      ++taken;
    }
  }
  if (endpoint.usable()) return_credits(endpoint);
  if (left) list(endpoint);
}

// -- What the fabric tells -----------------------------------------------------------------------------------------------

void NetTransport::on_done(uint64_t cookie, Errc result) {
  something_ended_ = true;
  if ((cookie & kPullBit) != 0) return on_pull_done(cookie, result);
  const SlotId slot = slot_of(cookie);
  Op* const op = ops_.find(slot.index, slot.generation);
  if (op == nullptr) return;
  --op->in_flight;
  if (result != Errc::kOk && op->result == Errc::kOk) op->result = result;
  Endpoint* const endpoint = find(op->endpoint);
  if (endpoint == nullptr) return;
  --endpoint->lanes[op->lane].in_flight;
  list(*endpoint);
  // Of an endpoint that ends, nobody else would: it is in no queue any more.
  if (!endpoint->visible() && op->in_flight == 0) complete(slot, op->result);
}

void NetTransport::on_message(FabricLink& link, size_t index, std::span<const std::byte> message) {
  Endpoint& endpoint = *static_cast<Endpoint*>(link.owner);
  if (!endpoint.visible()) return;
  const auto refuse = [&] {
    endpoint.broken = Errc::kProtocol;
    list(endpoint);
  };
  MessageHeader header;
  if (message.size() < sizeof(header)) return refuse();
  std::memcpy(&header, message.data(), sizeof(header));
  Lane& lane = endpoint.lanes[index];
  endpoint.heard_ns = now_;
  if (header.consumed - lane.peer_consumed > lane.sent - lane.peer_consumed) return refuse();
  lane.peer_consumed = header.consumed;
  list(endpoint);
  if (header.kind == MessageKind::kCredits) return;
  const bool known = header.kind == MessageKind::kMessage || header.kind == MessageKind::kNotify;
  if (!known || ++lane.received - lane.consumed > kMessageWindow) return refuse();
  Arrival arrival{.kind = header.kind, .immediate = header.immediate, .after = header.after};
  const std::span<const std::byte> payload = message.subspan(sizeof(header));
  if (header.kind == MessageKind::kMessage) {
    if (payload.size() > capabilities_.max_send_bytes) return refuse();
    arrival.buffer = pool_.allocate(payload.size());
    if (!payload.empty()) std::memcpy(arrival.buffer.data(), payload.data(), payload.size());
    counters_.bytes_copied_rx += payload.size();
  }
  lane.arrivals.push(std::move(arrival));
  message_came_ = true;
}

void NetTransport::on_failed(FabricLink& link, const Status& why) {
  Endpoint& endpoint = *static_cast<Endpoint*>(link.owner);
  if (endpoint.usable()) {
    GENIE_LOG_INFO("{}: the connection to {} was lost: {}", info_.name, endpoint.peer, why.to_string());
  }
  if (!endpoint.broken.has_value()) {
    endpoint.broken = why.code() == Errc::kProtocol ? Errc::kProtocol : Errc::kDisconnected;
  }
  list(endpoint);
}

void NetTransport::on_closed(FabricLink& link) {
  Endpoint& endpoint = *static_cast<Endpoint*>(link.owner);
  endpoint.link_closed = true;
  list(endpoint);
}

// -- Sockets and sleeping ------------------------------------------------------------------------------------------------

void NetTransport::list(Endpoint& endpoint) {
  if (endpoint.listed) return;
  endpoint.listed = true;
  listed_.push_back(endpoint.id);
}

void NetTransport::service_sockets(uint64_t timeout_ns) {
  socket_wanted_ = false;
  std::array<epoll_event, 64> events;
  const int ready = wait_for_events(epoll_.get(), events, timeout_ns);
  if (timeout_ns != 0) now_ = now_ns();
  next_sockets_ns_ = now_ + kSocketCheckNs;
  for (int i = 0; i < ready; ++i) {
    const epoll_event& event = events[static_cast<size_t>(i)];
    if (event.data.u64 == kWakeTag) {
      uint64_t count;
      while (::read(wake_fd_.get(), &count, sizeof(count)) < 0 && errno == EINTR) {
      }
      continue;
    }
    if (event.data.u64 == kFabricTag) continue;  // poll() looks anyhow
    if (event.data.u64 == kListenerTag) {
      accept_all();
      continue;
    }
    Endpoint* endpoint = find({static_cast<uint32_t>(event.data.u64), static_cast<uint32_t>(event.data.u64 >> 32)});
    if (endpoint == nullptr) continue;
    if ((event.events & EPOLLOUT) != 0 && endpoint->socket.flush().ok()) watch(*endpoint, false);
    if ((event.events & ~static_cast<uint32_t>(EPOLLOUT)) != 0) service(*endpoint);
  }
}

// Whether poll() could do something without anybody moving first.
bool NetTransport::has_work() {
  if (!completions_.empty()) return true;
  return std::ranges::any_of(listed_, [&](EndpointId id) {
    Endpoint* const endpoint = find(id);
    if (endpoint == nullptr) return false;
    if (endpoint->frames_left || endpoint->broken.has_value() || endpoint->link_closed) return true;
    return std::ranges::any_of(endpoint->lanes, [&](Lane& lane) {
      return !lane.arrivals.empty() && deliverable(*endpoint, lane.arrivals.front());
    });
  });
}

uint64_t NetTransport::next_event_ns() const { return std::min(earliest_deadline_ns_, next_tend_ns_); }

void NetTransport::wait(uint64_t timeout_ns) {
  if (has_work() || !fabric_->arm()) return;
  const uint64_t until_ns = endpoints_.size() == 0 ? UINT64_MAX : next_event_ns();
  service_sockets(std::min(timeout_ns, Deadline::at_ns(until_ns).left_ns()));
}

int NetTransport::arm() { return has_work() || !fabric_->arm() ? -1 : epoll_.get(); }

void NetTransport::wake() {
  const uint64_t one = 1;
  while (::write(wake_fd_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

}  // namespace genie::datapath::net
