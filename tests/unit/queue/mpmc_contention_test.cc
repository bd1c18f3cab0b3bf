// Many producers and consumers on real threads; meant for thread sanitizer too.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <string>

#include "datapath/queue/mpmc_queue.h"
#include "tests/unit/queue/contention.h"

namespace genie::queue {
namespace {

constexpr uint64_t kItemsPerProducer = 20'000;
constexpr size_t kBatch = 5;

struct Shape {
  uint64_t capacity;
  size_t producers;
  size_t consumers;
  size_t batch;  // 1: single items
};

class MpmcContention : public testing::TestWithParam<Shape> {
 protected:
  void produce(uint64_t producer) {
    std::array<Item, kBatch> items;
    for (uint64_t next = 0; next < kItemsPerProducer;) {
      const size_t count = std::min<uint64_t>(GetParam().batch, kItemsPerProducer - next);
      for (size_t i = 0; i < count; ++i) items[i] = Item::make(producer, next + i);
      const size_t pushed = queue_.push_batch({items.data(), count});
      next += pushed;
      if (pushed == 0 && !patience_.wait()) return;
    }
  }

  // Items of one producer come to one consumer in order; all consumers together get each once.
  void consume() {
    std::array<Item, kBatch> items;
    std::vector<uint64_t> at_least(GetParam().producers, 0);
    const uint64_t all = GetParam().producers * kItemsPerProducer;
    uint64_t wrong = 0;
    while (popped_.load() < all) {
      const size_t count = queue_.pop_batch({items.data(), GetParam().batch});
      for (size_t i = 0; i < count; ++i) {
        const Item& item = items[i];
        if (!item.whole() || item.producer >= at_least.size() || item.number >= kItemsPerProducer) {
          ++wrong;
          continue;
        }
        wrong += item.number < at_least[item.producer];
        at_least[item.producer] = item.number + 1;
        wrong += seen_[item.producer * kItemsPerProducer + item.number].fetch_add(1);
      }
      popped_.fetch_add(count);
      if (count == 0 && !patience_.wait()) break;
    }
    wrong_.fetch_add(wrong);
  }

  MpmcQueue<Item> queue_{GetParam().capacity};
  const Patience patience_;
  std::vector<std::atomic<uint8_t>> seen_ = std::vector<std::atomic<uint8_t>>(GetParam().producers * kItemsPerProducer);
  std::atomic<uint64_t> popped_{0};
  std::atomic<uint64_t> wrong_{0};
};

TEST_P(MpmcContention, EachItemComesOutOnceAndInItsProducersOrder) {
  std::vector<std::function<void()>> threads;
  for (size_t producer = 0; producer < GetParam().producers; ++producer) {
    threads.emplace_back([this, producer] { produce(producer); });
  }
  for (size_t i = 0; i < GetParam().consumers; ++i) threads.emplace_back([this] { consume(); });
  run_together(threads);
  EXPECT_EQ(popped_.load(), GetParam().producers * kItemsPerProducer);
  EXPECT_EQ(wrong_.load(), 0U);
  EXPECT_TRUE(std::ranges::all_of(seen_, [](const auto& count) { return count.load() == 1; }));
  Item none;
  EXPECT_FALSE(queue_.try_pop(none));
}

INSTANTIATE_TEST_SUITE_P(All, MpmcContention,
                         testing::Values(Shape{2, 1, 1, 1}, Shape{2, 2, 2, 1}, Shape{4, 3, 1, 1},
                                         Shape{4, 1, 3, kBatch}, Shape{8, 2, 2, kBatch}, Shape{64, 4, 4, 1},
                                         Shape{64, 4, 4, kBatch}),
                         [](const auto& info) {
                           const Shape& shape = info.param;
                           return "of" + std::to_string(shape.capacity) + "_" + std::to_string(shape.producers) + "to" +
                                  std::to_string(shape.consumers) + "_by" + std::to_string(shape.batch);
                         });

}  // namespace
}  // namespace genie::queue
