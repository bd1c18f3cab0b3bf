#include "datapath/memory/registration_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "tests/random_seed.h"

namespace genie::datapath {
namespace {

constexpr uint64_t kNow = 1;

class RegistrationCacheTest : public testing::Test {
 protected:
  explicit RegistrationCacheTest(const ForeignLimits& limits = {}) : cache_(limits) {}
  std::byte* at(size_t offset) { return memory_.data() + offset; }
  // How many the back end would deregister now.
  size_t ended() {
    size_t count = 0;
    for (Registration gone; cache_.next_ended(gone);) ++count;
    return count;
  }
  std::vector<std::byte> memory_ = std::vector<std::byte>(4096);
  RegistrationCache cache_;
  int handle_ = 0;
};

TEST_F(RegistrationCacheTest, FindsSubRanges) {
  const MemoryKey key = *cache_.add(at(100), 1000, MemoryKind::kHost, &handle_);
  ASSERT_NE(cache_.find(at(100), 1000), nullptr);
  EXPECT_EQ(cache_.find(at(100), 1000)->key, key);
  EXPECT_EQ(cache_.find(at(500), 600)->handle, &handle_);
  EXPECT_NE(cache_.find(at(1099), 1), nullptr);
  EXPECT_EQ(cache_.find(at(500), 601), nullptr);
  EXPECT_EQ(cache_.find(at(99), 1), nullptr);
  EXPECT_EQ(cache_.find(at(1100), 1), nullptr);
  EXPECT_EQ(cache_.find(at(200), SIZE_MAX), nullptr);
}

TEST_F(RegistrationCacheTest, TellsNeighboursApart) {
  const MemoryKey second = *cache_.add(at(100), 100, MemoryKind::kHost, nullptr);
  const MemoryKey first = *cache_.add(at(0), 100, MemoryKind::kHost, nullptr);
  const MemoryKey third = *cache_.add(at(300), 100, MemoryKind::kHost, nullptr);
  EXPECT_EQ(cache_.find(at(50), 10)->key, first);
  EXPECT_EQ(cache_.find(at(150), 10)->key, second);
  EXPECT_EQ(cache_.find(at(350), 10)->key, third);
  EXPECT_EQ(cache_.find(at(250), 10), nullptr);
  EXPECT_EQ(cache_.find(at(50), 100), nullptr) << "no single registration covers it";
}

TEST_F(RegistrationCacheTest, OverlapIsRefusedAndASubRangeShares) {
  const MemoryKey key = *cache_.add(at(100), 1000, MemoryKind::kHost, nullptr);
  EXPECT_EQ(cache_.add(at(50), 100, MemoryKind::kHost, nullptr).code(), Errc::kAlreadyExists);
  EXPECT_EQ(cache_.add(at(1000), 200, MemoryKind::kHost, nullptr).code(), Errc::kAlreadyExists);
  EXPECT_EQ(cache_.add(at(0), 4096, MemoryKind::kHost, nullptr).code(), Errc::kAlreadyExists);
  EXPECT_EQ(cache_.add(at(200), 10, MemoryKind::kCuda, nullptr).code(), Errc::kAlreadyExists);
  EXPECT_EQ(*cache_.add(at(200), 10, MemoryKind::kHost, nullptr), key);
  ASSERT_TRUE(cache_.remove(key, kNow).ok());
  EXPECT_NE(cache_.find(at(200), 10), nullptr);
  EXPECT_EQ(ended(), 0U);
  ASSERT_TRUE(cache_.remove(key, kNow).ok());
  EXPECT_EQ(cache_.find(at(200), 10), nullptr);
  EXPECT_EQ(ended(), 1U);
}

TEST_F(RegistrationCacheTest, StaleAndUnknownKeysAreRefused) {
  const MemoryKey key = *cache_.add(at(0), 10, MemoryKind::kHost, nullptr);
  ASSERT_TRUE(cache_.remove(key, kNow).ok());
  EXPECT_EQ(cache_.get(key).code(), Errc::kStale) << "before it was deregistered";
  EXPECT_EQ(ended(), 1U);
  EXPECT_EQ(cache_.get(key).code(), Errc::kStale);
  EXPECT_EQ(cache_.remove(key, kNow).code(), Errc::kStale);
  EXPECT_EQ(cache_.begin_use(key).code(), Errc::kStale);
  const MemoryKey again = *cache_.add(at(0), 10, MemoryKind::kHost, nullptr);
  EXPECT_EQ(again.index, key.index) << "the slot is reused";
  EXPECT_EQ(cache_.get(key).code(), Errc::kStale);
  EXPECT_TRUE(cache_.get(again).ok());
  EXPECT_EQ(cache_.get({99, 0}).code(), Errc::kNotFound);
  EXPECT_EQ(cache_.begin_use({99, 0}).code(), Errc::kNotFound);
}

TEST_F(RegistrationCacheTest, EmptyAndWrappingRangesAreRefused) {
  EXPECT_EQ(cache_.add(at(0), 0, MemoryKind::kHost, nullptr).code(), Errc::kInvalidArgument);
  EXPECT_EQ(cache_.add(nullptr, 10, MemoryKind::kHost, nullptr).code(), Errc::kInvalidArgument);
  EXPECT_EQ(cache_.add(at(0), SIZE_MAX, MemoryKind::kHost, nullptr).code(), Errc::kInvalidArgument);
  EXPECT_EQ(cache_.make_room(at(0), 0, kNow).code(), Errc::kInvalidArgument);
  cache_.forget(at(0), SIZE_MAX);
}

// A removal must not leave the last-answer shortcut pointing at a neighbour.
TEST_F(RegistrationCacheTest, ShortcutFollowsRemovals) {
  const MemoryKey first = *cache_.add(at(0), 100, MemoryKind::kHost, nullptr);
  const MemoryKey second = *cache_.add(at(100), 100, MemoryKind::kHost, nullptr);
  ASSERT_EQ(cache_.find(at(10), 10)->key, first);
  ASSERT_TRUE(cache_.remove(first, kNow).ok());
  EXPECT_EQ(cache_.find(at(10), 10), nullptr);
  EXPECT_EQ(cache_.find(at(110), 10)->key, second);
}

TEST_F(RegistrationCacheTest, RemovalWaitsForOperationsInFlight) {
  const MemoryKey key = *cache_.add(at(0), 100, MemoryKind::kHost, &handle_);
  ASSERT_TRUE(cache_.begin_use(key).ok());
  ASSERT_TRUE(cache_.begin_use(key).ok());
  ASSERT_TRUE(cache_.remove(key, kNow).ok());
  EXPECT_EQ(cache_.find(at(0), 1), nullptr) << "no further operation finds it";
  EXPECT_EQ(cache_.begin_use(key).code(), Errc::kStale);
  EXPECT_EQ(ended(), 0U);
  cache_.end_use(key, kNow);
  EXPECT_EQ(ended(), 0U);
  // The same memory can be registered anew meanwhile: it is another registration.
  const MemoryKey anew = *cache_.add(at(0), 100, MemoryKind::kHost, nullptr);
  EXPECT_FALSE(anew == key);
  cache_.end_use(key, kNow);
  Registration gone;
  ASSERT_TRUE(cache_.next_ended(gone));
  EXPECT_EQ(gone.handle, &handle_);
  EXPECT_EQ(gone.key, key);
  EXPECT_EQ(ended(), 0U);
  EXPECT_EQ(cache_.find(at(0), 1)->key, anew);
}

class ForeignMemoryTest : public RegistrationCacheTest {
 protected:
  ForeignMemoryTest() : RegistrationCacheTest(ForeignLimits{.bytes_max = 300, .count_max = 4, .idle_ns_max = 1000}) {}

  MemoryKey foreign(size_t offset, size_t size, uint64_t now_ns) {
    EXPECT_TRUE(cache_.make_room(at(offset), size, now_ns).ok());
    return *cache_.add_foreign(at(offset), size, MemoryKind::kHost, nullptr, now_ns);
  }
  bool found(size_t offset) { return cache_.find(at(offset), 1) != nullptr; }
};

TEST_F(ForeignMemoryTest, LeastRecentlyUsedMakesRoom) {
  const MemoryKey first = foreign(0, 100, 1);
  foreign(100, 100, 2);
  foreign(200, 100, 3);
  EXPECT_EQ(cache_.foreign_bytes(), 300U);
  ASSERT_TRUE(cache_.begin_use(first).ok());
  cache_.end_use(first, 4);  // now the youngest
  foreign(1000, 150, 5);
  EXPECT_TRUE(found(0));
  EXPECT_FALSE(found(100));
  EXPECT_FALSE(found(200)) << "100 bytes were not enough";
  EXPECT_EQ(cache_.foreign_bytes(), 450U) << "until they are deregistered";
  EXPECT_EQ(ended(), 2U);
  EXPECT_EQ(cache_.foreign_bytes(), 250U);
  EXPECT_EQ(cache_.foreign_count(), 2U);
}

TEST_F(ForeignMemoryTest, NumberIsLimitedToo) {
  for (size_t i = 0; i < 5; ++i) foreign(i * 10, 1, i);
  EXPECT_FALSE(found(0));
  EXPECT_TRUE(found(10) && found(20) && found(30) && found(40));
  EXPECT_EQ(ended(), 1U);
}

TEST_F(ForeignMemoryTest, MemoryInUseIsNotTaken) {
  const MemoryKey busy = foreign(0, 200, 1);
  ASSERT_TRUE(cache_.begin_use(busy).ok());
  const Status refused = cache_.make_room(at(1000), 101, 2);
  EXPECT_EQ(refused.code(), Errc::kQuotaExceeded);
  EXPECT_NE(refused.text().find("200 in use"), std::string_view::npos) << refused.text();
  EXPECT_TRUE(cache_.make_room(at(1000), 100, 2).ok());
  cache_.age(1'000'000);
  EXPECT_TRUE(found(0)) << "in use is not idle, however long";
  cache_.end_use(busy, 1'000'000);
  EXPECT_TRUE(cache_.make_room(at(1000), 300, 1'000'001).ok());
  EXPECT_FALSE(found(0));
  EXPECT_EQ(cache_.make_room(at(1000), 301, 3).code(), Errc::kQuotaExceeded) << "beyond the limit by itself";
}

TEST_F(ForeignMemoryTest, WhatWasRemovedInFlightCountsUntilItEnds) {
  const MemoryKey busy = foreign(0, 200, 1);
  ASSERT_TRUE(cache_.begin_use(busy).ok());
  cache_.forget(at(150), 1);
  EXPECT_FALSE(found(0));
  EXPECT_EQ(cache_.make_room(at(1000), 200, 2).code(), Errc::kQuotaExceeded);
  EXPECT_EQ(ended(), 0U);
  cache_.end_use(busy, 3);
  EXPECT_TRUE(cache_.make_room(at(1000), 200, 4).ok());
  EXPECT_EQ(ended(), 1U);
}

TEST_F(ForeignMemoryTest, IdleMemoryAges) {
  const MemoryKey first = foreign(0, 100, 1000);
  foreign(100, 100, 1500);
  cache_.age(1999);
  EXPECT_TRUE(found(0));
  ASSERT_TRUE(cache_.begin_use(first).ok());
  cache_.end_use(first, 1999);
  cache_.age(2500);
  EXPECT_TRUE(found(0));
  EXPECT_FALSE(found(100));
  cache_.age(2999);
  EXPECT_FALSE(found(0));
  EXPECT_EQ(ended(), 2U);
}

// The allocator of a program gives the same addresses out again, cut otherwise.
TEST_F(ForeignMemoryTest, OverlappedForeignMemoryMakesWay) {
  foreign(0, 100, 1);
  foreign(100, 50, 2);
  foreign(50, 60, 3);
  EXPECT_EQ(cache_.size(), 1U);
  EXPECT_EQ(ended(), 2U);
  EXPECT_EQ(cache_.find(at(50), 60)->foreign, true);
  // An arena wins over foreign memory, and is not driven out by it.
  ASSERT_TRUE(cache_.add(at(100), 400, MemoryKind::kHost, nullptr).ok());
  EXPECT_EQ(ended(), 1U);
  EXPECT_EQ(cache_.make_room(at(450), 100, 4).code(), Errc::kAlreadyExists);
  cache_.forget(at(0), 4096);
  EXPECT_TRUE(found(100));
}

TEST_F(ForeignMemoryTest, AUserKeepsItAndGivesItBack) {
  const MemoryKey key = foreign(0, 100, 1);
  EXPECT_EQ(*cache_.add(at(10), 10, MemoryKind::kHost, nullptr), key);
  cache_.age(1'000'000);
  EXPECT_EQ(cache_.make_room(at(1000), 250, 2).code(), Errc::kQuotaExceeded);
  EXPECT_TRUE(found(0));
  ASSERT_TRUE(cache_.remove(key, 1'000'000).ok());
  EXPECT_TRUE(found(0)) << "idle again";
  EXPECT_EQ(cache_.remove(key, 1'000'000).code(), Errc::kNotFound) << "it has no user left";
  cache_.age(1'001'000);
  EXPECT_FALSE(found(0));
}

// Random calls beside a list that is searched from end to end.
TEST(RegistrationCacheRandom, AgreesWithALinearSearch) {
  const uint64_t seed = test::random_seed();
  std::mt19937 random(seed);
  const auto below = [&](size_t limit) { return static_cast<size_t>(random() % limit); };
  std::vector<std::byte> memory(1 << 16);
  RegistrationCache cache({.bytes_max = 1 << 12, .count_max = 40, .idle_ns_max = 50});
  struct Known {
    size_t offset, size;
    MemoryKey key;
  };
  std::vector<Known> pinned;
  std::vector<MemoryKey> in_flight;
  size_t ended = 0;
  for (uint64_t now = 0; now < 20'000; ++now) {
    const size_t offset = below(memory.size() - 600);
    const size_t size = 1 + below(600);
    std::byte* data = memory.data() + offset;
    const auto overlaps = [&](const Known& known) {
      return known.offset < offset + size && offset < known.offset + known.size;
    };
    const auto covers = [&](const Known& known) {
      return known.offset <= offset && offset + size <= known.offset + known.size;
    };
    const bool clear = std::none_of(pinned.begin(), pinned.end(), overlaps);
    const bool covered = std::any_of(pinned.begin(), pinned.end(), covers);
    switch (below(8)) {
      case 0:
        if (pinned.size() < 60 && clear) {
          const Result<MemoryKey> key = cache.add(data, size, MemoryKind::kHost, nullptr);
          // Foreign memory may cover it, and is then shared; what that covers further is not asked for below.
          if (key && !cache.find(data, size)->foreign) {
            pinned.push_back({offset, size, *key});
          } else if (key) {
            ASSERT_TRUE(cache.remove(*key, now).ok());
          } else {
            ASSERT_EQ(key.code(), Errc::kAlreadyExists);
          }
        }
        break;
      case 1:
        if (!pinned.empty()) {
          const size_t which = below(pinned.size());
          ASSERT_TRUE(cache.remove(pinned[which].key, now).ok());
          pinned.erase(pinned.begin() + static_cast<std::ptrdiff_t>(which));
        }
        break;
      case 2:
        if (cache.make_room(data, size, now).ok()) {
          ASSERT_TRUE(clear);
          ASSERT_TRUE(cache.add_foreign(data, size, MemoryKind::kHost, nullptr, now).ok());
        }
        break;
      case 3: cache.forget(data, size); break;
      case 4: cache.age(now); break;
      case 5:
        if (const Registration* found = cache.find(data, 1); found != nullptr) {
          ASSERT_TRUE(cache.begin_use(found->key).ok());
          in_flight.push_back(found->key);
        }
        break;
      case 6:
        if (!in_flight.empty()) {
          const size_t which = below(in_flight.size());
          cache.end_use(in_flight[which], now);
          in_flight.erase(in_flight.begin() + static_cast<std::ptrdiff_t>(which));
        }
        break;
      default:
        for (Registration gone; cache.next_ended(gone); ++ended) {
          ASSERT_EQ(gone.in_flight, 0U);
          ASSERT_EQ(std::count(in_flight.begin(), in_flight.end(), gone.key), 0);
        }
    }
    const Registration* found = cache.find(data, size);
    const bool still = std::any_of(pinned.begin(), pinned.end(), covers);
    if (still) {
      ASSERT_TRUE(found != nullptr && !found->foreign) << now;
    } else {
      ASSERT_TRUE(found == nullptr || found->foreign) << now << (covered ? " was pinned before" : "");
    }
    if (found != nullptr) {
      ASSERT_TRUE(found->data <= data && data + size <= found->data + found->size);
    }
  }
  EXPECT_GT(ended, 100U);
  for (const Known& known : pinned) ASSERT_TRUE(cache.remove(known.key, 0).ok());
  for (const MemoryKey& key : in_flight) cache.end_use(key, 0);
  cache.forget(memory.data(), memory.size());
  Registration gone;
  while (cache.next_ended(gone)) {
  }
  EXPECT_EQ(cache.size() + cache.foreign_bytes() + cache.foreign_count(), 0U);
}

}  // namespace
}  // namespace genie::datapath
