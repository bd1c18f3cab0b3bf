// Counting heap allocations of one thread.
//
// Purpose: "no allocation per operation" as a number. allocations.cc replaces malloc and its family for the whole
//   program, so libraries are counted too; it is linked into genie-bench and a peer that it starts only.
// Thread-safety: each thread has its own counts.
#pragma once

#include <cstdint>

namespace genie::bench {

struct AllocationCounts {
  uint64_t calls = 0;
  uint64_t bytes = 0;
};

// This thread's allocations since it began. False from counts_allocations(): a sanitizer owns malloc, all stays zero.
AllocationCounts thread_allocations() noexcept;
bool counts_allocations() noexcept;

// What this thread allocated since the scope was made.
class AllocationScope {
 public:
  AllocationScope() noexcept : start_(thread_allocations()) {}
  AllocationCounts counts() const noexcept {
    const AllocationCounts now = thread_allocations();
    return {now.calls - start_.calls, now.bytes - start_.bytes};
  }

 private:
  AllocationCounts start_;
};

}  // namespace genie::bench
