// Completions: what ended, what came.
#include <arpa/inet.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/verbs/fabric_impl.h"

namespace genie::datapath::verbs {
namespace {

constexpr int kCompletionsPerPoll = 32;
// Receives are posted again in batches of so many.
constexpr uint32_t kReceiveBatch = 16;
static_assert(kReceives - kReceiveBatch >= net::kMessageWindow - kReceiveBatch);
// A busy poller looks at the devices' events (a system call) only now and then.
constexpr uint32_t kPollsPerEventCheck = 4096;

// Whether what was asked is at fault: no other rail would do better. Anything else is taken for the path's fault; drivers
// differ in what they call a port that went away.
bool request_failed(ibv_wc_status status) noexcept {
  switch (status) {
    case IBV_WC_LOC_LEN_ERR:
    case IBV_WC_LOC_PROT_ERR:
    case IBV_WC_LOC_ACCESS_ERR:
    case IBV_WC_REM_ACCESS_ERR:
    case IBV_WC_REM_INV_REQ_ERR: return true;
    default: return false;
  }
}

Status explain(ibv_wc_status status, const Rail& rail) {
  std::string where = rail.device->name + " to " + rail.peer_text + ": " + ibv_wc_status_str(status);
  switch (status) {
    case IBV_WC_REM_ACCESS_ERR:
      return Status(Errc::kPermission, std::move(where) + "; the peer's memory is no longer shared, or never was");
    case IBV_WC_LOC_PROT_ERR: return Status(Errc::kInvalidArgument, std::move(where));
    default: return Status(Errc::kDisconnected, std::move(where));
  }
}

}  // namespace

bool VerbsFabric::poll(net::FabricSink& sink) {
  bool moved = false;
  if (armed_ || ++polls_ % kPollsPerEventCheck == 0) drain_events();
  for (const ibv_wc& completion : std::exchange(stashed_, {})) {
    handle(completion, sink);
    moved = true;
  }
  std::array<ibv_wc, kCompletionsPerPoll> completions;
  for (const auto& device : devices_) {
    const int count = ibv_poll_cq(device->completions.get(), kCompletionsPerPoll, completions.data());
    for (int i = 0; i < count; ++i) handle(completions[static_cast<size_t>(i)], sink);
    moved = moved || count > 0;
  }
  moved = moved || !dirty_.empty() || !ending_.empty();
  settle(sink);
  return moved;
}

void VerbsFabric::handle(const ibv_wc& completion, net::FabricSink& sink) {
  QueuePair* const pair = find_pair(static_cast<uint32_t>(completion.wr_id >> 32));
  if (pair == nullptr) return;  // of a queue pair that is gone
  if (completion.status != IBV_WC_SUCCESS) [[unlikely]] {
    handle_error(*pair, completion);
  } else if ((completion.opcode & IBV_WC_RECV) != 0) {
    handle_receive(*pair, completion, sink);
  } else if (!pair->broken) {
    complete(*pair, pair->position(completion.wr_id) + 1);
  }
}

void VerbsFabric::handle_receive(QueuePair& pair, const ibv_wc& completion, net::FabricSink& sink) {
  Link& link = *pair.link;
  const uint32_t immediate = ntohl(completion.imm_data);
  --pair.receives_out;
  if ((immediate & kNoticeBit) != 0) {
    handle_notice(link, immediate);
  } else {
    Lane& lane = link.lanes[pair.lane];
    if (immediate != (lane.received & kNumberMask) || completion.byte_len > kSlotBytes) {
      return fail_link(link, Status(Errc::kProtocol, "a peer that does not keep to the order of its RDMA messages"));
    }
    const std::byte* message = lane.incoming + lane.next_in * kSlotBytes;
    ++lane.received;
    lane.next_in = (lane.next_in + 1) % kSlots;
    if (link.alive()) sink.on_message(link, pair.lane, {message, completion.byte_len});
  }
  // The call may have ended the link, and with it the queue pair; failing rails need no receives.
  if (!link.alive() || link.rails[pair.rail].state != RailState::kUp) return;
  if (pair.receives_out + kReceiveBatch > kReceives) return;
  const Status posted = pair.post_receives(kReceives - pair.receives_out);
  if (!posted.ok()) fail_rail(link, pair.rail, std::string(posted.text()));
}

// Requests are carried out in order: those before the first that failed have ended well. Each after it is flushed, and
// says so.
void VerbsFabric::handle_error(QueuePair& pair, const ibv_wc& completion) {
  Link& link = *pair.link;
  // The opcode says nothing after an error.
  if ((completion.wr_id & kReceiveMark) != 0) {
    --pair.receives_out;
  } else {
    const uint32_t position = pair.position(completion.wr_id);
    if (!pair.broken) {
      complete(pair, position);
      pair.broken = true;
    }
    pair.flushed = position + 1;
  }
  if (!link.alive()) return;
  const Rail& rail = link.rails[pair.rail];
  if (request_failed(completion.status)) {
    fail_link(link, explain(completion.status, rail));
  } else {
    fail_rail(link, pair.rail, ibv_wc_status_str(completion.status));
  }
}

void VerbsFabric::complete(QueuePair& pair, uint32_t upto) {
  Link& link = *pair.link;
  Lane& lane = link.lanes[pair.lane];
  for (; pair.completed != upto; ++pair.completed) {
    const Work work = pair.work(pair.completed);
    if (work.kind == Work::Kind::kMessage) {
      ++lane.acknowledged;
    } else if (work.kind == Work::Kind::kFlight) {
      Flight& flight = lane.flight(work.flight);
      pair.bytes_out -= flight.descriptor.size;
      finish(link, lane, flight, Errc::kOk);
    }
  }
}

void VerbsFabric::finish(Link& link, Lane& lane, Flight& flight, Errc result) {
  flight.done = true;
  flight.result = result;
  if (flight.staged != nullptr) {
    if (flight.descriptor.op == net::Descriptor::Op::kRead && result == Errc::kOk) {
      const Status copied = copy_staged(flight);
      if (!copied.ok()) GENIE_LOG_ERROR("verbs: {}", copied.to_string());
      flight.result = copied.code();
    }
    lane.staging_free.push_back(flight.staged);
    flight.staged = nullptr;
  }
  mark_dirty(link);
}

void VerbsFabric::mark_dirty(Link& link) {
  if (link.dirty) return;
  link.dirty = true;
  dirty_.push_back(&link);
}

// What ended, in the order in which it was posted.
void VerbsFabric::report(Link& link, net::FabricSink& sink) {
  link.dirty = false;
  for (Lane& lane : link.lanes) {
    while (lane.begin != lane.end && lane.flight(lane.begin).done) {
      const Flight& flight = lane.flight(lane.begin);
      const bool signaled = flight.descriptor.signaled;
      const uint64_t cookie = flight.descriptor.cookie;
      if (lane.carried == Errc::kOk) lane.carried = flight.result;
      ++lane.begin;  // the call may post
      if (signaled) sink.on_done(cookie, std::exchange(lane.carried, Errc::kOk));
    }
  }
}

// Everything that calls out, after the books are right.
void VerbsFabric::settle(net::FabricSink& sink) {
  for (size_t i = 0; i < failing_.size(); ++i) advance_failover(*failing_[i]);
  std::erase_if(failing_, [](const Link* link) { return !link->failing; });
  while (!dirty_.empty()) {
    Link& link = *dirty_.back();
    dirty_.pop_back();
    report(link, sink);
    if (link.state == LinkState::kFailed && !std::exchange(link.failure_told, true)) sink.on_failed(link, link.why);
  }
  for (size_t i = 0; i < ending_.size(); ++i) {
    Link& link = *ending_[i];
    if (link.state == LinkState::kDraining) {
      drain(link);
      const bool drained = std::all_of(link.rails.begin(), link.rails.end(), [](const Rail& rail) {
        return rail.state == RailState::kDown ||
               (rail.state == RailState::kUp && std::all_of(rail.pairs.begin(), rail.pairs.end(), [](const auto& pair) {
                  return pair->completed == pair->posted;
                }));
      });
      if (drained) cut(link, Errc::kOk);
    }
    if (link.state != LinkState::kCut) continue;
    report(link, sink);
    link.state = LinkState::kClosed;
    sink.on_closed(link);
  }
  std::erase_if(ending_, [](const Link* link) { return link->state == LinkState::kClosed; });
}

}  // namespace genie::datapath::verbs
