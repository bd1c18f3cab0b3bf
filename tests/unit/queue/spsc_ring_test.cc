// One thread at a time: geometry, order, batches in place, and what a hostile peer can do. Two threads:
// spsc_contention_test.cc; every interleaving: tests/unit/model.
#include "datapath/queue/spsc_ring.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <numeric>
#include <vector>

#include "datapath/base/clock.h"

namespace genie::queue {
namespace {

constexpr uint64_t kCapacity = 8;
using Ring = SpscRing<uint64_t>;

struct alignas(kNoSharing) Memory {
  std::array<std::byte, Ring::bytes(kCapacity)> bytes{};
};

class SpscRingTest : public testing::Test {
 protected:
  Memory memory_;
  Ring ring_ = Ring::format(&memory_, kCapacity);
  SpscProducer<uint64_t> producer_ = ring_.producer();
  SpscConsumer<uint64_t> consumer_ = ring_.consumer();
  SpscControl<>& control_ = *reinterpret_cast<SpscControl<>*>(&memory_);
};

TEST_F(SpscRingTest, HoldsExactlyItsCapacityInOrder) {
  uint64_t item = 0;
  EXPECT_FALSE(consumer_.try_pop(item));
  for (uint64_t round = 0; round < 5; ++round) {
    for (uint64_t i = 0; i < kCapacity; ++i) EXPECT_TRUE(producer_.try_push(round * 100 + i));
    EXPECT_FALSE(producer_.try_push(7));
    for (uint64_t i = 0; i < kCapacity; ++i) {
      ASSERT_TRUE(consumer_.try_pop(item));
      EXPECT_EQ(item, round * 100 + i);
    }
    EXPECT_FALSE(consumer_.try_pop(item));
  }
  EXPECT_EQ(producer_.pushed(), 5 * kCapacity);
  EXPECT_EQ(consumer_.popped(), 5 * kCapacity);
}

TEST_F(SpscRingTest, ASlotIsFreeAsSoonAsItsItemWasPopped) {
  for (uint64_t i = 0; i < kCapacity; ++i) ASSERT_TRUE(producer_.try_push(i));
  uint64_t item = 0;
  ASSERT_TRUE(consumer_.try_pop(item));
  EXPECT_TRUE(producer_.try_push(99));
  EXPECT_FALSE(producer_.try_push(100));
}

TEST_F(SpscRingTest, BatchesWrapAroundTheEndAndTakeAPrefix) {
  std::array<uint64_t, 5> in{};
  std::array<uint64_t, 6> out{};
  uint64_t next_in = 0;
  uint64_t next_out = 0;
  for (int round = 0; round < 50; ++round) {
    std::iota(in.begin(), in.end(), next_in);
    next_in += producer_.push_batch(in);
    const size_t count = consumer_.pop_batch(out);
    for (size_t i = 0; i < count; ++i) EXPECT_EQ(out[i], next_out++);
  }
  EXPECT_EQ(next_in, 250U);
  EXPECT_EQ(next_out, next_in);
  std::vector<uint64_t> many(kCapacity + 3, 1);
  EXPECT_EQ(producer_.push_batch(many), kCapacity);
  EXPECT_EQ(producer_.push_batch(many), 0U);
  EXPECT_EQ(producer_.push_batch({}), 0U);
}

TEST_F(SpscRingTest, ReserveAndPeekWorkInPlaceUpToTheEndOfTheSlots) {
  EXPECT_EQ(producer_.reserve(3).size(), 3U);
  auto slots = producer_.reserve(6);
  ASSERT_EQ(slots.size(), 6U);
  std::iota(slots.begin(), slots.end(), 10);
  EXPECT_TRUE(consumer_.peek(8).empty());
  producer_.commit(6);

  auto items = consumer_.peek(4);
  ASSERT_EQ(items.size(), 4U);
  EXPECT_EQ(items.data(), slots.data());
  EXPECT_EQ(items[0], 10U);
  EXPECT_EQ(consumer_.peek(8).size(), 6U);
  consumer_.release(6);

  EXPECT_EQ(producer_.reserve(8).size(), 2U) << "one piece ends where the slots end";
  producer_.commit(2);
  EXPECT_EQ(producer_.reserve(8).size(), 6U);
  producer_.commit(6);
  EXPECT_TRUE(producer_.reserve(1).empty());
  EXPECT_EQ(consumer_.peek(8).size(), 2U);
  consumer_.release(2);
  EXPECT_EQ(consumer_.peek(8).size(), 6U);
}

TEST_F(SpscRingTest, APartialCommitShowsOnlyThatMuch) {
  auto slots = producer_.reserve(4);
  std::iota(slots.begin(), slots.end(), 0);
  producer_.commit(1);
  EXPECT_EQ(consumer_.peek(8).size(), 1U);
  EXPECT_EQ(producer_.free_slots(8), 7U);
}

TEST_F(SpscRingTest, ZeroedMemoryIsAnEmptyRing) {
  Memory zeros;
  Ring other = Ring::at(&zeros, kCapacity);
  auto producer = other.producer();
  auto consumer = other.consumer();
  uint64_t item = 0;
  EXPECT_FALSE(consumer.try_pop(item));
  EXPECT_TRUE(producer.try_push(5));
  ASSERT_TRUE(consumer.try_pop(item));
  EXPECT_EQ(item, 5U);
}

TEST_F(SpscRingTest, ConsumerRefusesAnImpossibleTail) {
  ASSERT_TRUE(producer_.try_push(1));
  uint64_t item = 0;
  for (const uint64_t lie : {kCapacity + 1, ~uint64_t{0}, uint64_t{1} << 63}) {
    auto consumer = ring_.consumer();
    control_.tail.store(lie);
    EXPECT_FALSE(consumer.try_pop(item));
    EXPECT_TRUE(consumer.peek(100).empty());
    EXPECT_TRUE(consumer.corrupt());
  }
}

TEST_F(SpscRingTest, ConsumerRefusesATailThatGoesBack) {
  ASSERT_TRUE(producer_.try_push(1));
  ASSERT_TRUE(producer_.try_push(2));
  EXPECT_EQ(consumer_.peek(8).size(), 2U);
  control_.tail.store(1);
  EXPECT_EQ(consumer_.peek(8).size(), 2U);
  EXPECT_TRUE(consumer_.corrupt());
}

TEST_F(SpscRingTest, ProducerRefusesAnImpossibleHead) {
  for (uint64_t i = 0; i < kCapacity; ++i) ASSERT_TRUE(producer_.try_push(i));
  for (const uint64_t lie : {kCapacity + 1, ~uint64_t{0}}) {
    control_.head.store(lie);
    EXPECT_FALSE(producer_.try_push(9));
    EXPECT_TRUE(producer_.reserve(100).empty());
    EXPECT_TRUE(producer_.corrupt());
  }
}

TEST(SpscRing, TellsGoodCapacitiesFromBadOnes) {
  for (const uint64_t good : {1ULL, 2ULL, 1024ULL, 1ULL << 32}) EXPECT_TRUE(Ring::valid_capacity(good));
  for (const uint64_t bad : {0ULL, 3ULL, 1000ULL, 1ULL << 33, ~0ULL}) EXPECT_FALSE(Ring::valid_capacity(bad));
  EXPECT_EQ(Ring::bytes(4), 256U + 32U);
}

// Two processes that map the ring at different addresses.
TEST(SpscRing, WorksBetweenProcesses) {
  constexpr uint64_t kItems = 20'000;
  const size_t bytes = SpscRing<uint64_t>::bytes(64);
  const int fd = memfd_create("ring", MFD_CLOEXEC);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(ftruncate(fd, static_cast<off_t>(bytes)), 0);
  void* here = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ASSERT_NE(here, MAP_FAILED);
  auto consumer = Ring::format(here, 64).consumer();

  const Deadline deadline = Deadline::after_ms(30'000);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    void* there = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (there == MAP_FAILED || munmap(here, bytes) != 0) _exit(2);
    auto producer = Ring::at(there, 64).producer();
    for (uint64_t i = 0; i < kItems; ++i) {
      while (!producer.try_push(i * 3)) {
        if (deadline.expired()) _exit(3);
        sched_yield();
      }
    }
    _exit(0);
  }
  uint64_t received = 0;
  uint64_t item = 0;
  while (received < kItems && !deadline.expired()) {
    if (!consumer.try_pop(item)) {
      sched_yield();
      continue;
    }
    ASSERT_EQ(item, received * 3);
    ++received;
  }
  EXPECT_EQ(received, kItems);
  EXPECT_FALSE(consumer.corrupt());
  int wait_status = 0;
  ASSERT_EQ(waitpid(child, &wait_status, 0), child);
  EXPECT_EQ(wait_status, 0);
  munmap(here, bytes);
  close(fd);
}

}  // namespace
}  // namespace genie::queue
