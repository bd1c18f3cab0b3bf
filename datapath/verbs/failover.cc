// Rails that fail, and links that have none left. The protocol between the two sides is in link.h.
#include <utility>

#include "datapath/base/clock.h"
#include "datapath/base/log.h"
#include "datapath/verbs/fabric_impl.h"

namespace genie::datapath::verbs {
namespace {

// For a side to flush and to tell the other. Beyond, the link fails.
constexpr uint64_t kFailoverNs = 10'000'000'000;

}  // namespace

void VerbsFabric::fail_link(Link& link, Status why) {
  if (!link.alive()) return;
  const bool ending = link.state == LinkState::kDraining;
  link.failing = false;
  link.why = std::move(why);
  link.state = LinkState::kFailed;
  for (Rail& rail : link.rails) {
    for (const auto& pair : rail.pairs) {
      if (pair != nullptr) pair->fail();
    }
  }
  // Whoever ends the link already is told of its end alone.
  if (ending) return cut(link, Errc::kDisconnected);
  mark_dirty(link);
}

int VerbsFabric::next_up(const Link& link) const noexcept {
  for (size_t i = 0; i < link.rails.size(); ++i) {
    if (link.rails[i].state == RailState::kUp) return static_cast<int>(i);
  }
  return -1;
}

void VerbsFabric::fail_rail(Link& link, uint32_t index, const std::string& why) {
  Rail& rail = link.rails[index];
  if (!link.alive() || rail.state != RailState::kUp) return;
  rail.state = RailState::kFlushing;
  rail.failing_since_ns = now_ns();
  const std::string text = fmt::format("{} to {}: {}", rail.device->name, rail.peer_text, why);
  if (next_up(link) < 0) return fail_link(link, Status(Errc::kDisconnected, text));
  GENIE_LOG_WARN("verbs: a rail failed, the others take over: {}", text);
  for (const auto& pair : rail.pairs) pair->fail();
  // A notice that it carried may not have arrived.
  for (Rail& other : link.rails) {
    if (other.told && other.told_over == index) other.told = false;
  }
  if (!std::exchange(link.failing, true)) failing_.push_back(&link);
}

// What a peer tells is looked at in advance_failover(), where nothing is in the middle of anything.
void VerbsFabric::handle_notice(Link& link, uint32_t notice) {
  const uint32_t index = (notice & kNumberMask) >> 24;
  if (!link.alive()) return;
  if (index >= link.rails.size()) {
    return fail_link(link, Status(Errc::kProtocol, "a peer that tells of a rail that is not there"));
  }
  Rail& rail = link.rails[index];
  if (rail.state == RailState::kDown) return;  // told twice, because a rail failed that had carried it
  rail.peer_told = true;
  for (size_t lane = 0; lane < net::kLaneCount; ++lane) {
    rail.peer_received[lane] = static_cast<uint8_t>(notice >> (8 * lane));
  }
  if (rail.state == RailState::kUp) fail_rail(link, index, "the other end gave it up");
}

bool VerbsFabric::rail_flushed(const Rail& rail) const noexcept {
  for (const auto& pair : rail.pairs) {
    const uint32_t ended = pair->broken ? pair->flushed : pair->completed;
    if (ended != pair->posted || pair->receives_out != 0) return false;
  }
  return true;
}

void VerbsFabric::tell(Link& link, uint32_t index) {
  const int over = next_up(link);
  if (over < 0) return;
  Rail& rail = link.rails[index];
  rail.told = true;
  rail.told_over = static_cast<uint8_t>(over);
  post_notice(link, index, static_cast<uint32_t>(over));
}

void VerbsFabric::advance_failover(Link& link) {
  if (!link.alive()) {
    link.failing = false;
    return;
  }
  bool failing = false;
  for (uint32_t i = 0; i < link.rails.size(); ++i) {
    Rail& rail = link.rails[i];
    if (rail.state == RailState::kUp || rail.state == RailState::kDown) {
      // A notice that was lost with the rail that carried it.
      if (rail.state == RailState::kDown && !rail.told) tell(link, i);
      continue;
    }
    if (rail.state == RailState::kFlushing && rail_flushed(rail)) rail.state = RailState::kFlushed;
    if (rail.state == RailState::kFlushed && !rail.told) tell(link, i);
    if (rail.state == RailState::kFlushed && rail.told && rail.peer_told) {
      resume(link, i);
    } else if (now_ns() - rail.failing_since_ns > kFailoverNs) {
      fail_link(link, Status(Errc::kTimedOut, rail.device->name + " to " + rail.peer_text +
                                                  ": the two ends could not agree on what a failed rail had carried"));
    } else {
      failing = true;
    }
    if (!link.alive()) return;
  }
  link.failing = failing;
}

// Nothing is on its way over the rail any more, on neither side: what did not end goes over another.
void VerbsFabric::resume(Link& link, uint32_t index) {
  Rail& rail = link.rails[index];
  rail.state = RailState::kDown;
  destroy_pairs(link, rail);
  for (size_t i = 0; i < net::kLaneCount; ++i) {
    Lane& lane = link.lanes[i];
    const bool moves = lane.home == index;
    if (moves) {
      const int home = next_up(link);
      if (home < 0) return;  // the last one fails right now, and the link with it
      lane.home = static_cast<uint8_t>(home);
    }
    for (uint32_t count = lane.begin; count != lane.end; ++count) {
      Flight& flight = lane.flight(count);
      if (flight.done || flight.rail != index) continue;
      const int other = choose_rail(link, i, flight.descriptor);
      if (other < 0) return;
      flight.rail = static_cast<uint8_t>(other);
      append(link, i, count);
      if (!link.alive()) return;
    }
    ring_doorbells();
    if (!moves) continue;
    const uint32_t received = lane.sent - static_cast<uint8_t>(lane.sent - rail.peer_received[i]);
    if (received - lane.acknowledged > lane.sent - lane.acknowledged) {
      return fail_link(link, Status(Errc::kProtocol, "a peer that claims messages that it was not sent"));
    }
    lane.acknowledged = received;
    for (uint32_t number = received; number != lane.sent && link.alive(); ++number) {
      post_message(link, i, number, (lane.next_out + kSlots - (lane.sent - number)) % kSlots);
    }
  }
}

}  // namespace genie::datapath::verbs
