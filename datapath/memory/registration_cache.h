// RegistrationCache: which registered memory covers [data, data + size)?
//
// Purpose: registering memory with a device is slow, so it is done once per arena and looked up per transfer. Ranges
//   never overlap; a range inside a registered one shares it, counted. Memory of others ("foreign": a caller's buffer that
//   no arena holds) stays registered after its use, least recently used out first, within limits of bytes, number and age.
// Thread-safety: none; it belongs to its transport's poller.
// Ownership: the cache owns neither the memory nor `handle` (the back end's registration). It never deregisters:
//   next_ended() says what nobody can find any more and no posted operation uses, and the back end then deregisters that.
//   An operation holds the registration of its memory from post to completion; a removal in between makes it unfindable
//   at once and ends it with the last operation.
// Foreign memory must be forgotten before it is unmapped: a device keeps the pages that it was told, and another mapping
//   at the same address would not be seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "datapath/base/ring_queue.h"
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
  uint32_t users = 0;      // add() calls that were not yet removed
  uint32_t in_flight = 0;  // posted operations
  bool foreign = false;    // made by add_foreign(): stays when its last user has gone
};

struct ForeignLimits {
  size_t bytes_max = size_t{1} << 30;
  size_t count_max = 1024;
  uint64_t idle_ns_max = 60'000'000'000;  // unused for so long: age() ends it
};

class RegistrationCache {
 public:
  explicit RegistrationCache(const ForeignLimits& limits = {}) noexcept : limits_(limits) {}
  RegistrationCache(const RegistrationCache&) = delete;
  RegistrationCache& operator=(const RegistrationCache&) = delete;

  // Adds a range, or one more user of the registration that covers it already (`handle` is then not taken: compare with
  // find() first). Foreign registrations that overlap without covering it make way. kAlreadyExists when it overlaps any
  // other one without lying inside; kInvalidArgument when empty.
  Result<MemoryKey> add(std::byte* data, size_t size, MemoryKind kind, void* handle);
  // One user less. With the last one the key is stale, unless the memory is foreign: that stays as long as limits allow.
  // kNotFound also when it has no user.
  Status remove(MemoryKey key, uint64_t now_ns);

  // Before foreign memory is registered: ends idle registrations until `size` bytes more are within the limits, and those
  // that overlap the range without covering it. kQuotaExceeded when what is in use leaves no room: copy instead.
  // Deregister what next_ended() answers first, so that the process' limit of locked memory has room too.
  Status make_room(const std::byte* data, size_t size, uint64_t now_ns);
  // After it: like add(), without a user.
  Result<MemoryKey> add_foreign(std::byte* data, size_t size, MemoryKind kind, void* handle, uint64_t now_ns);
  // The owner of [data, data + size) is about to unmap it: foreign registrations that touch it end. Until next_ended() has
  // answered them, operations still use the memory.
  void forget(const std::byte* data, size_t size);
  // Ends what has been idle for too long. O(1) when nothing has.
  void age(uint64_t now_ns);

  // The registration that covers [data, data + size); null when none does. O(log n), the last answer first.
  const Registration* find(const std::byte* data, size_t size) const noexcept;
  // kStale for a key of an earlier generation or a removed registration, kNotFound for one that never was.
  Result<const Registration*> get(MemoryKey key) const;

  // A posted operation uses it; end_use() once for each. Errors as of get().
  Status begin_use(MemoryKey key);
  void end_use(MemoryKey key, uint64_t now_ns);

  // The next registration to be deregistered; false when there is none.
  bool next_ended(Registration& out);

  // Findable ones.
  size_t size() const noexcept { return ranges_.size(); }
  // Foreign memory that is registered, also what only waits for its last operation or for next_ended().
  size_t foreign_bytes() const noexcept { return foreign_bytes_; }
  size_t foreign_count() const noexcept { return foreign_count_; }

 private:
  struct Entry {
    Registration registration;
    bool removed = false;  // unfindable
    // The idle list: foreign, no user, no operation; oldest first.
    bool idle = false;
    uint64_t idle_since_ns = 0;
    Entry* older = nullptr;
    Entry* newer = nullptr;
  };
  struct Range {
    uintptr_t begin;
    Entry* entry;
  };

  size_t first_end_beyond(uintptr_t at) const noexcept;
  Result<MemoryKey> insert(std::byte* data, size_t size, MemoryKind kind, void* handle, bool foreign, uint64_t now_ns);
  bool clear_way(uintptr_t begin, uintptr_t end);
  Entry* live(MemoryKey key) noexcept;
  void retire(Entry& entry);
  void link_newest(Entry& entry, uint64_t now_ns) noexcept;
  void unlink(Entry& entry) noexcept;

  const ForeignLimits limits_;
  SlotTable<Entry> slots_;
  // Sorted and disjoint; ends_[i] belongs to ranges_[i]. Apart, because a search reads ends only.
  std::vector<uintptr_t> ends_;
  std::vector<Range> ranges_;
  mutable size_t last_ = 0;
  Entry* oldest_ = nullptr;
  Entry* newest_ = nullptr;
  RingQueue<Entry*> ended_;
  size_t foreign_bytes_ = 0;
  size_t foreign_count_ = 0;
};

}  // namespace genie::datapath
