// SpinBudget: how long an idle poller spins before it sleeps.
//
// Purpose: to wake a sleeper costs whoever wakes it a system call, and the sleeper the way back to a core: together more than a
//   small step takes. To spin costs a core, for nothing when what is waited for is far away. So the budget follows what the
//   waits before took: twice the latest of those that were short, at most `most_ns`; waits that no such spin would have
//   outlasted take it back down to `least_ns` in a few. (The rule by which KVM polls for a halted processor's next event.)
// Thread-safety: none; a budget belongs to one poller.
#pragma once

#include <algorithm>
#include <cstdint>

namespace genie {

class SpinBudget {
 public:
  static constexpr uint64_t kLeastNs = 50'000;
  static constexpr uint64_t kMostNs = 1'000'000;

  explicit SpinBudget(uint64_t least_ns = kLeastNs, uint64_t most_ns = kMostNs) noexcept
      : least_ns_(least_ns), most_ns_(std::max(least_ns, most_ns)), now_ns_(least_ns) {}

  uint64_t ns() const noexcept { return now_ns_; }

  // What was waited for came `waited_ns` after the wait began, whether that was spent spinning or asleep.
  void learn(uint64_t waited_ns) noexcept {
    const uint64_t wanted_ns = waited_ns > most_ns_ ? now_ns_ / 2 : std::max(2 * waited_ns, now_ns_ - now_ns_ / 8);
    now_ns_ = std::clamp(wanted_ns, least_ns_, most_ns_);
  }

 private:
  const uint64_t least_ns_;
  const uint64_t most_ns_;
  uint64_t now_ns_;
};

}  // namespace genie
