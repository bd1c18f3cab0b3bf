// SlotTable: values addressed by (index, generation), so that a handle of an earlier tenant is told from the present one.
//
// Purpose: the handle tables of the datapath (endpoints, regions, imports, registrations).
// Thread-safety: none; it belongs to its owner's thread or lock.
// Ownership: the table owns its values. References are stable until erase() of that slot. A slot's generation grows at
//   each erase; a slot whose generation has run out is never used again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "genie/status.h"

namespace genie::datapath {

struct SlotId {
  uint32_t index = UINT32_MAX;
  uint32_t generation = 0;
};

template <typename T>
class SlotTable {
 public:
  template <typename... Args>
  SlotId emplace(Args&&... args) {
    uint32_t index;
    if (free_.empty()) {
      index = made_;
      if (index % kChunk == 0) chunks_.push_back(std::make_unique<Slot[]>(kChunk));
      ++made_;
    } else {
      index = free_.back();
      free_.pop_back();
    }
    Slot& slot = at(index);
    slot.value.emplace(std::forward<Args>(args)...);
    ++size_;
    return {index, slot.generation};
  }

  // Null when the handle was never given out or is stale; why() tells which.
  T* find(uint32_t index, uint32_t generation) noexcept {
    if (index >= made_) return nullptr;
    Slot& slot = at(index);
    return slot.generation == generation && slot.value.has_value() ? &*slot.value : nullptr;
  }
  const T* find(uint32_t index, uint32_t generation) const noexcept {
    return const_cast<SlotTable*>(this)->find(index, generation);
  }

  // Why find() answered null: kStale for a handle of an earlier generation, kNotFound for one that never was.
  Errc why(uint32_t index, uint32_t generation) const noexcept {
    return index < made_ && generation < at(index).generation ? Errc::kStale : Errc::kNotFound;
  }

  // Removes the value; the handle is stale from now on. False when it was not there.
  bool erase(uint32_t index, uint32_t generation) noexcept {
    if (find(index, generation) == nullptr) return false;
    Slot& slot = at(index);
    slot.value.reset();
    --size_;
    if (++slot.generation != UINT32_MAX) free_.push_back(index);
    return true;
  }

  size_t size() const noexcept { return size_; }

  // Calls visit(SlotId, T&) for each value; visit may erase the value it was given.
  template <typename Visit>
  void for_each(Visit&& visit) {
    for (uint32_t index = 0; index < made_; ++index) {
      Slot& slot = at(index);
      if (slot.value.has_value()) visit(SlotId{index, slot.generation}, *slot.value);
    }
  }

 private:
  struct Slot {
    std::optional<T> value;
    uint32_t generation = 0;
  };

  // Slots stay where they are; a look-up is two loads.
  static constexpr uint32_t kChunk = 32;
  Slot& at(uint32_t index) const noexcept { return chunks_[index / kChunk][index % kChunk]; }

  std::vector<std::unique_ptr<Slot[]>> chunks_;
  uint32_t made_ = 0;
  std::vector<uint32_t> free_;
  size_t size_ = 0;
};

}  // namespace genie::datapath
