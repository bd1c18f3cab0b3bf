// How long tests wait for what must come, and the wait itself.
//
// Thread-safety: any thread.
#pragma once

#include <cstdint>

#include "datapath/base/clock.h"

namespace genie::test {

// Generous: a sanitizer's build on a busy machine.
inline constexpr uint64_t kPatienceMs = 120'000;

// Asks until `holds_now` does; false when patience is over.
template <typename Predicate>
bool eventually(const Predicate& holds_now) {
  const Deadline deadline = Deadline::after_ms(kPatienceMs);
  while (!deadline.expired()) {
    if (holds_now()) return true;
  }
  return false;
}

}  // namespace genie::test
