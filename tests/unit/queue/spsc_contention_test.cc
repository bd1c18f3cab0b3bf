// One producer and one consumer on real threads, with every way to push and to pop; meant for thread sanitizer too.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <string>
#include <tuple>

#include "datapath/queue/spsc_ring.h"
#include "tests/unit/queue/contention.h"

namespace genie::queue {
namespace {

constexpr uint64_t kItems = 60'000;
constexpr size_t kBatch = 7;  // divides no capacity
using Ring = SpscRing<Item>;

enum class Way : uint8_t { kSingle, kBatch, kInPlace };

size_t push(SpscProducer<Item>& producer, Way way, uint64_t next) {
  const size_t count = std::min<uint64_t>(kBatch, kItems - next);
  if (way == Way::kSingle) return producer.try_push(Item::make(1, next));
  if (way == Way::kBatch) {
    std::array<Item, kBatch> items;
    for (size_t i = 0; i < count; ++i) items[i] = Item::make(1, next + i);
    return producer.push_batch({items.data(), count});
  }
  const auto slots = producer.reserve(count);
  for (size_t i = 0; i < slots.size(); ++i) slots[i] = Item::make(1, next + i);
  if (!slots.empty()) producer.commit(slots.size());
  return slots.size();
}

size_t pop(SpscConsumer<Item>& consumer, Way way, std::array<Item, kBatch>& items) {
  if (way == Way::kSingle) return consumer.try_pop(items[0]);
  if (way == Way::kBatch) return consumer.pop_batch(items);
  const auto slots = consumer.peek(kBatch);
  std::ranges::copy(slots, items.begin());
  if (!slots.empty()) consumer.release(slots.size());
  return slots.size();
}

class SpscContention : public testing::TestWithParam<std::tuple<uint64_t, Way, Way>> {};

TEST_P(SpscContention, KeepsOrderAndLosesNothing) {
  const auto [capacity, push_way, pop_way] = GetParam();
  const std::unique_ptr<std::byte[], void (*)(std::byte*)> memory(
      static_cast<std::byte*>(
          std::aligned_alloc(kNoSharing, (Ring::bytes(capacity) + kNoSharing - 1) / kNoSharing * kNoSharing)),
      [](std::byte* bytes) { std::free(bytes); });
  const Ring ring = Ring::format(memory.get(), capacity);
  auto producer = ring.producer();
  auto consumer = ring.consumer();
  uint64_t pushed = 0;
  uint64_t popped = 0;
  uint64_t wrong = 0;
  const Patience patience;
  run_together({[&, push_way = push_way] {
                  while (pushed < kItems) {
                    const size_t count = push(producer, push_way, pushed);
                    pushed += count;
                    if (count == 0 && !patience.wait()) return;
                  }
                },
                [&, pop_way = pop_way] {
                  std::array<Item, kBatch> items;
                  while (popped < kItems) {
                    const size_t count = pop(consumer, pop_way, items);
                    for (size_t i = 0; i < count; ++i) wrong += !items[i].whole() || items[i].number != popped++;
                    if (count == 0 && !patience.wait()) return;
                  }
                }});
  EXPECT_EQ(pushed, kItems);
  EXPECT_EQ(popped, kItems);
  EXPECT_EQ(wrong, 0U);
  EXPECT_FALSE(producer.corrupt() || consumer.corrupt());
  Item none;
  EXPECT_FALSE(consumer.try_pop(none));
}

const char* way_name(Way way) { return way == Way::kSingle ? "single" : way == Way::kBatch ? "batch" : "in_place"; }

INSTANTIATE_TEST_SUITE_P(All, SpscContention,
                         testing::Combine(testing::Values(1, 4, 64),
                                          testing::Values(Way::kSingle, Way::kBatch, Way::kInPlace),
                                          testing::Values(Way::kSingle, Way::kBatch, Way::kInPlace)),
                         [](const auto& info) {
                           return std::to_string(std::get<0>(info.param)) + "_" + way_name(std::get<1>(info.param)) +
                                  "_" + way_name(std::get<2>(info.param));
                         });

}  // namespace
}  // namespace genie::queue
