// ResultMemory: where a session's results lie so that its client, another process, reads them without a copy.
//
// Purpose: regions that the client maps privately, and spans in them. A span is memory for one result: a storage born there
//   or a copy made there, by the node; the client then holds it until it releases it.
// Invariant: the node never writes a span that the client holds. The client's mapping is private page by page: what the
//   program has not written there shows what the node writes later. So a span is whole pages; it returns to the regions only
//   when neither a storage nor the client holds it; and a storage that is to be written while the client holds it moves
//   out first (executor/sharing.h).
// Trust: spans belong to one session and to its client alone; a client that releases what it still reads, or never
//   releases, harms itself. Its regions are bounded (Limits).
// Thread-safety: all functions may be called from any thread, but regions are added and dropped by one thread, the poller.
// Ownership: a span keeps its region's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "genie/status.h"
#include "src/session/span_allocator.h"

namespace genie::node {

class ResultMemory;

// Memory for one result, given back when dropped.
class ResultSpan {
 public:
  ResultSpan(std::shared_ptr<ResultMemory> memory, uint32_t region, uint64_t offset,
             std::span<std::byte> bytes) noexcept
      : memory_(std::move(memory)), region_(region), offset_(offset), bytes_(bytes) {}
  ~ResultSpan();
  ResultSpan(const ResultSpan&) = delete;
  ResultSpan& operator=(const ResultSpan&) = delete;

  std::span<std::byte> bytes() const noexcept { return bytes_; }
  ResultMemory& memory() const noexcept { return *memory_; }
  // Before the first write: no page fault for every page of a large one. kOutOfMemory.
  Status make_present() const noexcept;

 private:
  const std::shared_ptr<ResultMemory> memory_;
  const uint32_t region_;
  const uint64_t offset_;
  const std::span<std::byte> bytes_;
};

class ResultMemory : public std::enable_shared_from_this<ResultMemory> {
 public:
  // Where a byte lies.
  struct Place {
    uint32_t region = 0;
    uint64_t offset = 0;
    bool passing = false;  // in a region beyond the limit: the client is to copy the result and let go
  };

  explicit ResultMemory(uint64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  // Null when no region has room.
  std::shared_ptr<ResultSpan> reserve(size_t size);
  // Whether [data, data + size) lies in one region.
  std::optional<Place> find(const std::byte* data, size_t size) const;

  // How large the next region should be, for a result of `size` bytes; `passing` when it would go beyond the limit.
  struct Wish {
    size_t bytes = 0;
    bool passing = false;
  };
  Wish wish(size_t size) const;
  // `owner` lives as long as any span of the region.
  void add(uint32_t number, std::span<std::byte> memory, bool passing, std::shared_ptr<void> owner);
  // Takes out regions without spans: passing ones, and large ones that have been empty for long.
  std::vector<uint32_t> take_idle(uint64_t now_ns);
  struct Bytes {
    uint64_t kept = 0;     // of regions within the limit
    uint64_t passing = 0;  // of the others
  };
  Bytes region_bytes() const;

 private:
  friend class ResultSpan;
  struct Region {
    uint32_t number = 0;
    std::span<std::byte> memory;
    bool passing = false;
    std::shared_ptr<void> owner;
    session::SpanAllocator places;
    size_t present = 0;  // bytes from the beginning that were made present
    uint64_t empty_since_ns = 0;
  };

  void release(uint32_t region, uint64_t offset, size_t size) noexcept;
  Status make_present(uint32_t region, uint64_t offset, size_t size) noexcept;
  Region* find_locked(uint32_t number) noexcept;

  const uint64_t limit_bytes_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Region>> regions_;
  uint64_t bytes_ = 0;  // of regions that are not passing
};

}  // namespace genie::node
