// Placement: lets a fresh tensor be born in memory of our choice.
//
// Purpose: an operator allocates its result itself. While a PlacementScope is there, the calling thread's allocations of
//   exactly its size of CPU memory come from a Birthplace; all others, and those of other threads, go where they always went.
//   The size is exact, so what else an operator allocates hardly ever ends up there; where it does it is memory like any other.
// Thread-safety: a scope belongs to its thread. Scopes do not nest.
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

}  // namespace genie::executor
