// The small parts of the shared-memory transport: receive pool, copies, tables, queues, addresses.
#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "datapath/base/ring_queue.h"
#include "datapath/base/slot_table.h"
#include "datapath/memory/receive_pool.h"
#include "datapath/shm/control.h"
#include "datapath/shm/stream_copy.h"

namespace genie::datapath {
namespace {

TEST(ReceivePool, ReusesMemoryThatCameBack) {
  ReceivePool pool;
  std::set<std::byte*> first;
  {
    std::vector<Buffer> live;
    for (int i = 0; i < 10; ++i) {
      live.push_back(pool.allocate(1000));
      first.insert(live.back().data());
    }
    EXPECT_EQ(first.size(), 10U);
  }
  std::vector<Buffer> again;
  for (int i = 0; i < 10; ++i) {
    again.push_back(pool.allocate(600));
    EXPECT_TRUE(first.contains(again.back().data()));
  }
}

TEST(ReceivePool, BuffersAreAlignedAndOutliveThePool) {
  Buffer kept;
  Buffer empty;
  {
    ReceivePool pool;
    kept = pool.allocate(16384);
    empty = pool.allocate(0);
  }
  EXPECT_EQ(reinterpret_cast<uintptr_t>(kept.data()) % 64, 0U);
  std::memset(kept.data(), 1, kept.size());
  EXPECT_NE(empty.data(), nullptr);
  EXPECT_EQ(empty.size(), 0U);
}

TEST(ReceivePool, BuffersMayBeDroppedOnOtherThreads) {
  ReceivePool pool;
  for (int round = 0; round < 50; ++round) {
    std::vector<Buffer> live;
    for (int i = 0; i < 100; ++i) {
      live.push_back(pool.allocate(static_cast<size_t>(i) * 100));
      std::memset(live.back().data(), i, live.back().size());
    }
    std::thread dropper([taken = std::move(live)]() mutable { taken.clear(); });
    for (int i = 0; i < 100; ++i) std::memset(pool.allocate(300).data(), 1, 300);
    dropper.join();
  }
}

TEST(StreamCopy, CopiesEveryAlignmentAndLength) {
  std::vector<std::byte> source(10'000);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::byte>(i * 7 + 1);
  for (size_t to = 0; to < 65; to += 3) {
    for (size_t from = 0; from < 65; from += 7) {
      for (const size_t size : {0U, 1U, 63U, 64U, 65U, 127U, 128U, 1000U, 9000U}) {
        std::vector<std::byte> target(10'000);
        stream_copy(target.data() + to, source.data() + from, size);
        ASSERT_EQ(std::memcmp(target.data() + to, source.data() + from, size), 0);
        ASSERT_EQ(target[to + size], std::byte{0});
        if (to > 0) {
          ASSERT_EQ(target[to - 1], std::byte{0});
        }
      }
    }
  }
}

TEST(SlotTable, TellsStaleFromUnknown) {
  SlotTable<int> table;
  const SlotId first = table.emplace(1);
  ASSERT_NE(table.find(first.index, first.generation), nullptr);
  EXPECT_TRUE(table.erase(first.index, first.generation));
  EXPECT_FALSE(table.erase(first.index, first.generation));
  EXPECT_EQ(table.why(first.index, first.generation), Errc::kStale);
  const SlotId second = table.emplace(2);
  EXPECT_EQ(second.index, first.index);
  EXPECT_EQ(table.find(first.index, first.generation), nullptr);
  EXPECT_EQ(*table.find(second.index, second.generation), 2);
  EXPECT_EQ(table.why(second.index, second.generation + 1), Errc::kNotFound);
  EXPECT_EQ(table.why(1'000, 0), Errc::kNotFound);
  EXPECT_EQ(table.size(), 1U);
}

TEST(SlotTable, VisitsMayErase) {
  SlotTable<int> table;
  for (int i = 0; i < 10; ++i) table.emplace(i);
  table.for_each([&](SlotId id, int value) {
    if (value % 2 == 0) table.erase(id.index, id.generation);
  });
  EXPECT_EQ(table.size(), 5U);
}

TEST(RingQueue, KeepsOrderWhileItGrowsAndWraps) {
  RingQueue<int> queue;
  int pushed = 0;
  int popped = 0;
  for (int round = 0; round < 200; ++round) {
    for (int i = 0; i < round % 17; ++i) queue.push(pushed++);
    for (int i = 0; i < round % 13 && !queue.empty(); ++i) ASSERT_EQ(queue.pop(), popped++);
    if (!queue.empty()) {
      EXPECT_EQ(queue.at(queue.size() - 1), pushed - 1);
    }
  }
  EXPECT_EQ(queue.size(), static_cast<size_t>(pushed - popped));
}

TEST(UnixAddress, SchemeAndLengthAreChecked) {
  EXPECT_EQ(*parse_unix_address("unix:/run/genie.sock"), "/run/genie.sock");
  EXPECT_EQ(parse_unix_address("tcp://a:1").code(), Errc::kInvalidArgument);
  EXPECT_EQ(parse_unix_address("unix:").code(), Errc::kInvalidArgument);
  EXPECT_EQ(parse_unix_address("unix:/" + std::string(107, 'x')).code(), Errc::kInvalidArgument);
}

}  // namespace
}  // namespace genie::datapath
