#include "datapath/memory/registration_cache.h"

#include <gtest/gtest.h>

#include <vector>

namespace genie::datapath {
namespace {

class RegistrationCacheTest : public testing::Test {
 protected:
  std::byte* at(size_t offset) { return memory_.data() + offset; }
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
  EXPECT_EQ(cache_.remove(key)->users, 1U);
  EXPECT_NE(cache_.find(at(200), 10), nullptr);
  EXPECT_EQ(cache_.remove(key)->users, 0U);
  EXPECT_EQ(cache_.find(at(200), 10), nullptr);
}

TEST_F(RegistrationCacheTest, StaleAndUnknownKeysAreRefused) {
  const MemoryKey key = *cache_.add(at(0), 10, MemoryKind::kHost, nullptr);
  ASSERT_TRUE(cache_.remove(key).ok());
  EXPECT_EQ(cache_.get(key).code(), Errc::kStale);
  EXPECT_EQ(cache_.remove(key).code(), Errc::kStale);
  const MemoryKey again = *cache_.add(at(0), 10, MemoryKind::kHost, nullptr);
  EXPECT_EQ(again.index, key.index) << "the slot is reused";
  EXPECT_EQ(cache_.get(key).code(), Errc::kStale);
  EXPECT_TRUE(cache_.get(again).ok());
  EXPECT_EQ(cache_.get({99, 0}).code(), Errc::kNotFound);
}

TEST_F(RegistrationCacheTest, EmptyAndWrappingRangesAreRefused) {
  EXPECT_EQ(cache_.add(at(0), 0, MemoryKind::kHost, nullptr).code(), Errc::kInvalidArgument);
  EXPECT_EQ(cache_.add(nullptr, 10, MemoryKind::kHost, nullptr).code(), Errc::kInvalidArgument);
  EXPECT_EQ(cache_.add(at(0), SIZE_MAX, MemoryKind::kHost, nullptr).code(), Errc::kInvalidArgument);
}

// A removal must not leave the last-answer shortcut pointing at a neighbour.
TEST_F(RegistrationCacheTest, ShortcutFollowsRemovals) {
  const MemoryKey first = *cache_.add(at(0), 100, MemoryKind::kHost, nullptr);
  const MemoryKey second = *cache_.add(at(100), 100, MemoryKind::kHost, nullptr);
  ASSERT_EQ(cache_.find(at(10), 10)->key, first);
  ASSERT_TRUE(cache_.remove(first).ok());
  EXPECT_EQ(cache_.find(at(10), 10), nullptr);
  EXPECT_EQ(cache_.find(at(110), 10)->key, second);
}

}  // namespace
}  // namespace genie::datapath
