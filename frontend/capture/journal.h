// Journal: what a thread records while it has a capture open, kept for capture.graph().
//
// Purpose: segments are thrown away when they are flushed; a journal copies their records, all of them, before they are pruned.
//   One journal serves the captures that a thread nests: each is a range of its records.
// Thread-safety: any thread. Lock order: a stream's lock, then the journal's.
// Ownership: shared by the thread's open captures, by finished ones that can still be asked, and by the attached streams.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "frontend/capture/stream.h"
#include "genie/graph.h"

namespace genie::frontend {

class Journal : public std::enable_shared_from_this<Journal> {
 public:
  // A bound for programs that never end their capture: later operators are counted, not kept.
  static constexpr size_t kMaxRecords = size_t{1} << 20;

  // From now on the stream's records are copied before its segments are thrown away.
  void attach(Stream& stream);
  void detach_all();
  // Copies what the stream recorded since the last time. The stream's lock is held.
  void collect(Stream& stream);
  // Copies what all attached streams have pending, and says how many records there are.
  size_t settle();
  Graph graph(size_t first, size_t last) const;

 private:
  struct StorageName {
    const SessionCore* session;
    uint64_t id;
    bool operator==(const StorageName&) const = default;
  };
  struct Hash {
    size_t operator()(const StorageName& name) const noexcept {
      return std::hash<const void*>()(name.session) ^ (name.id * 0x9E3779B97F4A7C15U);
    }
  };
  std::vector<Stream*> streams() const;
  uint32_t number_of(const StorageState& state);

  mutable std::mutex mutex_;
  Segment kept_;  // its touches name storages by the journal's numbers; no slots, no strings
  size_t count_ = 0;
  std::unordered_map<StorageName, uint32_t, Hash> numbers_;
  std::vector<Stream*> streams_;
};

}  // namespace genie::frontend
