// One thread: bounds, order, batches. Many threads: mpmc_contention_test.cc; every interleaving: tests/unit/model.
#include "datapath/queue/mpmc_queue.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <vector>

namespace genie::queue {
namespace {

TEST(MpmcQueue, HoldsExactlyItsCapacityInOrder) {
  MpmcQueue<uint64_t> queue(4);
  uint64_t item = 0;
  EXPECT_FALSE(queue.try_pop(item));
  for (uint64_t round = 0; round < 5; ++round) {
    for (uint64_t i = 0; i < 4; ++i) EXPECT_TRUE(queue.try_push(round * 100 + i));
    EXPECT_FALSE(queue.try_push(7));
    EXPECT_EQ(queue.size_hint(), 4U);
    for (uint64_t i = 0; i < 4; ++i) {
      ASSERT_TRUE(queue.try_pop(item));
      EXPECT_EQ(item, round * 100 + i);
    }
    EXPECT_FALSE(queue.try_pop(item));
    EXPECT_EQ(queue.size_hint(), 0U);
  }
}

TEST(MpmcQueue, SmallestCapacityTellsWrittenFromFree) {
  MpmcQueue<uint64_t> queue(2);
  uint64_t item = 0;
  for (uint64_t i = 0; i < 10; ++i) {
    ASSERT_TRUE(queue.try_push(i));
    ASSERT_TRUE(queue.try_pop(item));
    EXPECT_EQ(item, i);
    EXPECT_FALSE(queue.try_pop(item));
  }
}

TEST(MpmcQueue, BatchesTakeAPrefixAndKeepOrder) {
  MpmcQueue<uint64_t> queue(8);
  std::vector<uint64_t> in(11);
  std::iota(in.begin(), in.end(), 0);
  EXPECT_EQ(queue.push_batch(in), 8U);
  EXPECT_EQ(queue.push_batch(in), 0U);
  std::array<uint64_t, 3> out{};
  EXPECT_EQ(queue.pop_batch(out), 3U);
  EXPECT_EQ(out, (std::array<uint64_t, 3>{0, 1, 2}));
  EXPECT_EQ(queue.push_batch(std::span(in).subspan(8)), 3U);
  std::array<uint64_t, 20> rest{};
  ASSERT_EQ(queue.pop_batch(rest), 8U);
  for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(rest[i], i + 3);
  EXPECT_EQ(queue.pop_batch(rest), 0U);
  EXPECT_EQ(queue.push_batch({}), 0U);
  EXPECT_EQ(queue.pop_batch({}), 0U);
}

TEST(MpmcQueue, CarriesWorkDescriptors) {
  struct Work {
    uint64_t id;
    void* context;
    uint32_t kind;
  };
  MpmcQueue<Work> queue(2);
  int target = 0;
  ASSERT_TRUE(queue.try_push({.id = 5, .context = &target, .kind = 2}));
  Work work{};
  ASSERT_TRUE(queue.try_pop(work));
  EXPECT_EQ(work.id, 5U);
  EXPECT_EQ(work.context, &target);
  EXPECT_EQ(work.kind, 2U);
}

}  // namespace
}  // namespace genie::queue
