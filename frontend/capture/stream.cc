#include "frontend/capture/stream.h"

namespace genie::frontend {

uint32_t next_segment_number() {
  static std::atomic<uint32_t> counter{0};
  uint32_t number = counter.fetch_add(1, std::memory_order_relaxed) + 1;
  if (number == 0) number = counter.fetch_add(1, std::memory_order_relaxed) + 1;
  return number;
}

void Stream::begin_segment() {
  open.clear();
  journaled = 0;
  open.number = next_segment_number();
  open_number.store(open.number, std::memory_order_release);
}

uint32_t Stream::slot_of(StorageState* state) {
  const uint64_t place = state->place.load(std::memory_order_relaxed);
  if (static_cast<uint32_t>(place >> 32) == open.number) return static_cast<uint32_t>(place);
  if (state->many_readers.load(std::memory_order_relaxed)) {
    // Several streams read it at once and overwrite each other's tags: look it up the slow way.
    if (shared_slots.empty()) {
      for (uint32_t i = 0; i < open.slots.size(); ++i) shared_slots.emplace(open.slots[i].state, i);
    }
    if (auto found = shared_slots.find(state); found != shared_slots.end()) return found->second;
  }
  const auto slot = static_cast<uint32_t>(open.slots.size());
  state->retain();
  open.slots.push_back(SlotEntry{state, state->on_node});
  if (!shared_slots.empty()) shared_slots.emplace(state, slot);
  state->place.store((uint64_t{open.number} << 32) | slot, std::memory_order_relaxed);
  return slot;
}

}  // namespace genie::frontend
