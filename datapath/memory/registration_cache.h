// RegistrationCache: which registered memory covers [data, data + size)?
//
// Purpose: registering memory with a device is slow, so it is done once per arena and looked up per transfer. Ranges
//   never overlap; a range inside a registered one shares it, counted.
// Thread-safety: none; it belongs to its transport's poller.
// Ownership: the cache owns neither the memory nor `handle` (the back end's registration); remove() says when the last
//   user has gone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "datapath/base/slot_table.h"
#include "datapath/memory/buffer.h"
#include "genie/status.h"

namespace genie::datapath {

struct Registration {
  std::byte* data = nullptr;
  size_t size = 0;
  MemoryKind kind = MemoryKind::kHost;
  void* handle = nullptr;
  MemoryKey key;
  uint32_t users = 0;
};

class RegistrationCache {
 public:
  // Adds a range, or one more user of the registration that covers it already (`handle` is then not taken: compare with
  // find() first). kAlreadyExists when it overlaps another one without lying inside; kInvalidArgument when empty.
  Result<MemoryKey> add(std::byte* data, size_t size, MemoryKind kind, void* handle);

  // The registration that covers [data, data + size); null when none does. O(log n), the last answer first.
  const Registration* find(const std::byte* data, size_t size) const noexcept;

  // kStale for a key of an earlier generation, kNotFound for one that never was.
  Result<const Registration*> get(MemoryKey key) const;

  // One user less. Answers the registration when that was the last one: the key is then stale and the caller
  // deregisters; otherwise a Registration with users > 0.
  Result<Registration> remove(MemoryKey key);

  size_t size() const noexcept { return slots_.size(); }

 private:
  struct Range {
    uintptr_t begin;
    uintptr_t end;
    const Registration* registration;
  };
  // The first range whose end lies beyond `at`.
  size_t lower(uintptr_t at) const noexcept;

  SlotTable<Registration> slots_;
  std::vector<Range> ranges_;  // sorted, disjoint
  mutable size_t last_ = 0;
};

}  // namespace genie::datapath
