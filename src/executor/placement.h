// Placement: lets a fresh tensor be born in memory of our choice, and no tensor be larger than what may still be had.
//
// Purpose: an operator allocates its result itself. While a PlacementScope is there, the calling thread's allocations of
//   exactly its size of CPU memory come from a Birthplace; all others, and those of other threads, go where they always went.
//   The size is exact, so what else an operator allocates hardly ever ends up there; where it does it is memory like any other.
//   While an AllocationLimit is there, what the calling thread holds of new allocations stays within it: one that does not fit
//   throws std::bad_alloc before any memory is asked for. A quota that only counts what an operator gave back would come too
//   late for the machine.
// Thread-safety: a scope or limit belongs to its thread. They do not nest with their own kind.
// Ownership: placed memory goes back when the tensor that it became has gone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/executor/executor.h"

namespace genie::executor {

class PlacementScope {
 public:
  PlacementScope(Birthplace& birthplace, uint64_t storage, size_t size) noexcept;
  ~PlacementScope();
  PlacementScope(const PlacementScope&) = delete;
  PlacementScope& operator=(const PlacementScope&) = delete;

 private:
  friend class PlacingAllocator;
  Birthplace& birthplace_;
  const uint64_t storage_;
  const size_t size_;
};

class AllocationLimit {
 public:
  explicit AllocationLimit(uint64_t bytes) noexcept;
  ~AllocationLimit();
  AllocationLimit(const AllocationLimit&) = delete;
  AllocationLimit& operator=(const AllocationLimit&) = delete;

  // What may be allocated from now on; what is freed may be had again.
  void set(uint64_t bytes) noexcept;
  // The size of the allocation that was refused last; 0: none was.
  uint64_t refused_bytes() const noexcept { return refused_bytes_; }

 private:
  friend class PlacingAllocator;
  uint64_t left_bytes_;
  uint64_t refused_bytes_ = 0;
};

}  // namespace genie::executor
