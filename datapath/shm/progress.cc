// poll() and wait(): the event loop.
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/base/waiting.h"
#include "datapath/shm/transport_impl.h"

namespace genie::datapath::shm {

namespace {

// A busy poller looks at its sockets (a system call) only now and then: they carry no data.
constexpr uint32_t kPollsPerSocketCheck = 64;
// An endpoint that stays idle among many is no longer scanned; its peer's bell brings it back.
constexpr uint32_t kIdleScans = 4096;
constexpr size_t kScannedAlways = 8;
// Messages of one endpoint before others get their turn.
constexpr int kReceivesPerScan = 32;

}  // namespace

size_t ShmTransport::poll(std::span<Completion> out) {
  bulk_budget_ = options_.chunk_bytes;
  if (++polls_since_sockets_ >= kPollsPerSocketCheck || scanned_.empty()) service_sockets(0);
  if (pending_ops_ != 0) expire();
  size_t filled = 0;
  const auto drain = [&] {
    while (filled < out.size() && !completions_.empty()) out[filled++] = completions_.pop();
  };
  drain();
  ++cursor_;  // another endpoint is first each time
  for (size_t left = scanned_.size(); left != 0 && !scanned_.empty(); --left) {
    if (cursor_ >= scanned_.size()) cursor_ = 0;
    const EndpointId id = scanned_[cursor_++];
    scan(*find(id), out, filled);
  }
  drain();
  return filled;
}

// The endpoint may be gone afterwards.
void ShmTransport::scan(Endpoint& endpoint, std::span<Completion> out, size_t& filled) {
  const EndpointId id = endpoint.id;
  if (endpoint.state == EndpointState::kOpen && endpoint.has_pending()) advance_pending(endpoint);
  const size_t before = filled;
  receive(endpoint, out, filled);
  const RingState state = filled < out.size() ? endpoint.receiver->look() : RingState::kReady;
  if (state == RingState::kCorrupt || endpoint.sender->corrupt()) {
    GENIE_LOG_WARN("a peer on shared memory wrote nonsense into its ring; its endpoint is closed");
    return end(endpoint, Errc::kProtocol, Errc::kProtocol);
  }
  if (endpoint.state == EndpointState::kDraining) {
    if (state == RingState::kEmpty) end(endpoint, Errc::kDisconnected, Errc::kDisconnected);
    return;
  }
  const bool idle = filled == before && !endpoint.has_pending();
  endpoint.idle_scans = idle ? endpoint.idle_scans + 1 : 0;
  if (endpoint.idle_scans < kIdleScans || scanned_.size() <= kScannedAlways) return;
  stop_scanning(*find(id));
}

void ShmTransport::advance_pending(Endpoint& endpoint) {
  for (size_t i = 0; i < kClassCount; ++i) {
    const bool bulk = i == static_cast<size_t>(TransferClass::kBulk);
    RingQueue<PendingOp>& queue = endpoint.pending[i];
    size_t budget = bulk ? bulk_budget_ : options_.chunk_bytes;
    while (!queue.empty() && advance(endpoint, queue.front(), budget)) {
      PendingOp op = queue.pop();
      --pending_ops_;
      count_users(op, -1);
      finish(endpoint, std::move(op), Errc::kOk);
    }
    if (bulk) bulk_budget_ = budget;
  }
}

void ShmTransport::receive(Endpoint& endpoint, std::span<Completion> out, size_t& filled) {
  MessageReceiver<>& receiver = *endpoint.receiver;
  int taken = 0;
  for (; taken < kReceivesPerScan && filled < out.size(); ++taken) {
    // What was queued before, the connection itself first of all, comes out before new messages.
    if (!completions_.empty() || receiver.look() != RingState::kReady) break;
    const MessageHeader header = receiver.header();
    Completion& completion = out[filled++];
    completion = Completion{.immediate = header.immediate, .endpoint = endpoint.id};
    if (header.kind == MessageKind::kMessage) {
      completion.opcode = Opcode::kReceive;
      completion.buffer = pool_.allocate(header.size);
      counters_.bytes_copied_rx += header.size;
      ++counters_.messages_received;
    } else {
      completion.opcode = Opcode::kNotified;
    }
    receiver.take(completion.buffer.data());
  }
  if (taken == 0) return;
  // The receiver's half of "room in the ring" (endpoint.h).
  std::atomic_thread_fence(std::memory_order_seq_cst);
  std::atomic<uint32_t>& sleeps = endpoint.incoming->sender_sleeps;
  if (sleeps.load(std::memory_order_relaxed) == 0) return;
  sleeps.store(0, std::memory_order_relaxed);
  endpoint.channel.ring_bell();
}

// Ends the endpoints of operations whose time is over.
void ShmTransport::expire() {
  const uint64_t now = now_ns();
  if (now < earliest_deadline_ns_) return;
  uint64_t earliest = UINT64_MAX;
  // Every endpoint with operations is scanned. Ending one moves the last into its place.
  for (size_t i = scanned_.size(); i-- > 0;) {
    Endpoint& endpoint = *find(scanned_[i]);
    uint64_t first = UINT64_MAX;
    for (RingQueue<PendingOp>& queue : endpoint.pending) {
      for (size_t at = 0; at < queue.size(); ++at) first = std::min(first, queue.at(at).deadline_ns);
    }
    if (first <= now) {
      end(endpoint, Errc::kTimedOut, Errc::kDisconnected);
    } else {
      earliest = std::min(earliest, first);
    }
  }
  earliest_deadline_ns_ = earliest;
}

void ShmTransport::service_sockets(uint64_t timeout_ns) {
  polls_since_sockets_ = 0;
  std::array<epoll_event, 64> events;
  const int ready = wait_for_events(epoll_.get(), events, timeout_ns);
  for (int i = 0; i < ready; ++i) {
    const epoll_event& event = events[static_cast<size_t>(i)];
    if (event.data.u64 == kWakeTag) {
      uint64_t count;
      while (::read(wake_fd_.get(), &count, sizeof(count)) < 0 && errno == EINTR) {
      }
      continue;
    }
    if (event.data.u64 == kListenerTag) {
      accept_all();
      continue;
    }
    const auto index = static_cast<uint32_t>(event.data.u64);
    const auto generation = static_cast<uint32_t>(event.data.u64 >> 32);
    Endpoint* endpoint = find({index, generation});
    if (endpoint == nullptr) continue;
    if ((event.events & EPOLLOUT) != 0 && endpoint->channel.flush().ok()) watch(*endpoint, false);
    if ((event.events & ~static_cast<uint32_t>(EPOLLOUT)) != 0) service(*endpoint);
  }
  if (handshakes_ != 0) expire_handshakes();
}

// A client that connects and says nothing must not hold a place for ever.
void ShmTransport::expire_handshakes() {
  const uint64_t now = now_ns();
  if (now < earliest_handshake_ns_) return;
  uint64_t earliest = UINT64_MAX;
  endpoints_.for_each([&](SlotId, Endpoint& endpoint) {
    if (endpoint.state != EndpointState::kHandshake) return;
    const uint64_t deadline = endpoint.handshake_deadline_ns;
    if (deadline <= now) {
      end(endpoint, Errc::kTimedOut, Errc::kTimedOut);
    } else {
      earliest = std::min(earliest, deadline);
    }
  });
  earliest_handshake_ns_ = earliest;
}

void ShmTransport::start_scanning(Endpoint& endpoint) {
  endpoint.idle_scans = 0;
  if (endpoint.scanned) return;
  endpoint.scanned = true;
  wake_up(endpoint);
  scanned_.push_back(endpoint.id);
}

// Leaves the endpoint to its peer's bell; does nothing when there is something to do after all.
void ShmTransport::stop_scanning(Endpoint& endpoint) {
  announce_sleep(endpoint);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (has_work(endpoint)) return wake_up(endpoint);
  remove_from_scan(endpoint);
}

void ShmTransport::remove_from_scan(Endpoint& endpoint) {
  if (!endpoint.scanned) return;
  endpoint.scanned = false;
  const auto at = std::find(scanned_.begin(), scanned_.end(), endpoint.id);
  *at = scanned_.back();
  scanned_.pop_back();
}

void ShmTransport::announce_sleep(Endpoint& endpoint) {
  endpoint.incoming->receiver_sleeps.store(1, std::memory_order_relaxed);
  if (endpoint.has_pending()) endpoint.outgoing->sender_sleeps.store(1, std::memory_order_relaxed);
}

void ShmTransport::wake_up(Endpoint& endpoint) {
  endpoint.incoming->receiver_sleeps.store(0, std::memory_order_relaxed);
  endpoint.outgoing->sender_sleeps.store(0, std::memory_order_relaxed);
}

// Whether poll() could do something for the endpoint without its peer moving first.
bool ShmTransport::has_work(Endpoint& endpoint) {
  if (endpoint.state == EndpointState::kDraining) return true;
  if (endpoint.receiver->look() != RingState::kEmpty || endpoint.sender->corrupt()) return true;
  for (RingQueue<PendingOp>& queue : endpoint.pending) {
    if (queue.empty()) continue;
    const PendingOp& op = queue.front();
    const bool copying = op.opcode != Opcode::kSend && op.done < op.buffer.size();
    if (copying || endpoint.sender->has_room(op.opcode == Opcode::kSend ? op.buffer.size() : 0)) return true;
  }
  return false;
}

void ShmTransport::wait(uint64_t timeout_ns) {
  if (!completions_.empty()) return;
  for (const EndpointId id : scanned_) announce_sleep(*find(id));
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const bool work = std::any_of(scanned_.begin(), scanned_.end(), [&](EndpointId id) { return has_work(*find(id)); });
  if (!work) {
    if (pending_ops_ != 0) timeout_ns = std::min(timeout_ns, Deadline::at_ns(earliest_deadline_ns_).left_ns());
    if (handshakes_ != 0) timeout_ns = std::min(timeout_ns, Deadline::at_ns(earliest_handshake_ns_).left_ns());
    service_sockets(timeout_ns);
  }
  for (const EndpointId id : scanned_) wake_up(*find(id));
}

void ShmTransport::wake() {
  const uint64_t one = 1;
  while (::write(wake_fd_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

}  // namespace genie::datapath::shm
