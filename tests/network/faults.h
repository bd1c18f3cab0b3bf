// What the relay does to packets, and what it counts: its program's words, and its user's.
#pragma once

#include <cstdint>

namespace genie::test {

struct Faults {
  double loss = 0;
  uint64_t delay_us = 0;
  uint64_t jitter_us = 0;
  double reorder = 0;
  double duplicate = 0;
};

struct WireCounters {
  uint64_t forwarded = 0;   // frames that went on, copies included
  uint64_t lost = 0;        // by the seed
  uint64_t reordered = 0;   // forwarded after one that had come later
  uint64_t duplicated = 0;  // copies that were made
  uint64_t cut = 0;         // thrown away while the wire was cut
  uint64_t overflowed = 0;  // no room, or the far interface did not take it
};

}  // namespace genie::test
