#include "bench/harness/allocations.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <thread>

namespace genie::bench {
namespace {

// A compiler may drop an allocation that nobody looks at.
template <class T>
T* looked_at(T* memory) {
  asm volatile("" : "+r"(memory) : : "memory");
  return memory;
}

TEST(Allocations, CountsMallocAndNewOfThisThreadOnly) {
  if (!counts_allocations()) GTEST_SKIP() << "a sanitizer owns malloc";
  const AllocationScope scope;
  EXPECT_EQ(scope.counts().calls, 0U);
  const std::unique_ptr<char[]> by_new(looked_at(new char[100]));
  EXPECT_EQ(scope.counts().calls, 1U);
  EXPECT_EQ(scope.counts().bytes, 100U);
  void* aligned = nullptr;
  ASSERT_EQ(posix_memalign(&aligned, 64, 100), 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(aligned) % 64, 0U);
  std::free(aligned);
  std::free(looked_at(std::calloc(100, 2)));
  EXPECT_EQ(scope.counts().calls, 3U);
  EXPECT_EQ(scope.counts().bytes, 400U);

  AllocationCounts others;
  std::thread([&] {
    const AllocationScope inner;
    std::free(looked_at(std::malloc(50)));
    others = inner.counts();
  }).join();
  EXPECT_EQ(others.calls, 1U);
  EXPECT_EQ(others.bytes, 50U);
}

}  // namespace
}  // namespace genie::bench
