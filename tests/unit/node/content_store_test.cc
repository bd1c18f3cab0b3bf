// Blobs by their content: who is told of them, who may write them, and when they go.
#include "src/node/content_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <latch>
#include <random>
#include <thread>
#include <vector>

#include "src/node/aligned_block.h"
#include "tests/eventually.h"
#include "tests/random_seed.h"

namespace genie::node {
namespace {

constexpr size_t kBytes = wire::kMinContentBytes + 4096;
constexpr uint64_t kIdentity = 1;

std::vector<std::byte> content(uint64_t seed, size_t size = kBytes) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = std::byte((seed * 131 + i * 7 + (i >> 8)) & 0xFF);
  return bytes;
}

// As if a client had handed it over.
std::shared_ptr<const RegionMemory> memory_with(std::span<const std::byte> bytes) {
  Result<datapath::Buffer> block = make_aligned_block(bytes.size());
  EXPECT_TRUE(block.ok());
  std::memcpy(block->data(), bytes.data(), bytes.size());
  return std::make_shared<RegionMemory>(
      datapath::Taken{.memory = std::move(*block), .final = true, .writable = true, .resident_bytes = bytes.size()});
}

class Listener final : public ContentWaiter {
 public:
  void on_settled(uint64_t question) noexcept override {
    uint64_t seen = last.load();
    while (seen < question && !last.compare_exchange_weak(seen, question)) {
    }
  }
  std::atomic<uint64_t> last{0};  // the highest
};

class Contents : public ::testing::Test {
 protected:
  std::shared_ptr<ContentHold> add(std::span<const std::byte> bytes, uint64_t identity = kIdentity) {
    const std::shared_ptr<const RegionMemory> memory = memory_with(bytes);
    std::byte* const data = memory->taken().memory.data();
    return store_->add(identity, {data, bytes.size()}, memory);
  }
  static ContentKey key_of(std::span<const std::byte> bytes, uint64_t identity = kIdentity) {
    return {.identity = identity, .size = bytes.size(), .sketch = wire::sketch_of(bytes)};
  }
  // Waits for the hasher, as a session does.
  std::vector<std::shared_ptr<ContentHold>> find(std::span<const std::byte> bytes, uint64_t identity = kIdentity) {
    for (;;) {
      const uint64_t question = ++question_;
      ContentStore::Found found = store_->find(key_of(bytes, identity), listener_, question);
      if (found.settled) return std::move(found.holds);
      if (!test::eventually([&] { return listener_->last.load() == question; })) {
        ADD_FAILURE() << "nobody was told";
        return {};
      }
    }
  }

  const std::shared_ptr<ContentStore> store_ = ContentStore::make();
  const std::shared_ptr<Listener> listener_ = std::make_shared<Listener>();
  uint64_t question_ = 0;
};

TEST_F(Contents, TheSameBytesAreFoundByTheirHash) {
  const std::vector<std::byte> bytes = content(1);
  const auto first = add(bytes);
  ASSERT_NE(first, nullptr);
  const auto holds = find(bytes);
  ASSERT_EQ(holds.size(), 1U);
  EXPECT_EQ(holds[0]->hash(), wire::hash_of(bytes));
  EXPECT_EQ(holds[0]->bytes().data(), first->bytes().data());
  EXPECT_EQ(holds[0]->memory(), first->memory());
  EXPECT_TRUE(find(content(2)).empty());
  EXPECT_TRUE(find(bytes, kIdentity + 1).empty()) << "another identity has nothing";
  EXPECT_EQ(store_->counters().blobs, 1U);
  EXPECT_EQ(store_->counters().bytes, kBytes);
  EXPECT_EQ(store_->counters().hashed_bytes, kBytes);
}

TEST_F(Contents, SmallBytesAreNotWorthIt) {
  EXPECT_EQ(add(content(1, wire::kMinContentBytes - 1)), nullptr);
  EXPECT_NE(add(content(1, wire::kMinContentBytes)), nullptr);
}

TEST_F(Contents, OneSketchMayBeThatOfDifferentBytes) {
  const std::vector<std::byte> bytes = content(1);
  std::vector<std::byte> other = bytes;
  other[200] ^= std::byte{1};  // behind the first sample
  ASSERT_EQ(wire::sketch_of(bytes), wire::sketch_of(other));
  const auto first = add(bytes);
  const auto second = add(other);
  const auto again = add(bytes);
  const auto holds = find(bytes);
  ASSERT_EQ(holds.size(), 2U) << "the same bytes twice are told once";
  EXPECT_FALSE(holds[0]->hash() == holds[1]->hash());
  std::vector<std::shared_ptr<ContentHold>> many;
  for (size_t i = 3; i < ContentStore::kMaxOfKey; ++i) many.push_back(add(bytes));
  EXPECT_NE(many.back(), nullptr);
  EXPECT_EQ(add(bytes), nullptr) << "what has one sketch is bounded";
}

TEST_F(Contents, WhoAsksIsToldWhatCameBehind) {
  std::vector<std::shared_ptr<ContentHold>> model;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    model.push_back(add(content(seed)));
    if (seed == 2) model.push_back(add(content(9), kIdentity + 1));
  }
  for (uint64_t seed = 1; seed <= 4; ++seed) (void)find(content(seed));  // all are hashed
  const auto told = find(content(2));
  ASSERT_EQ(told.size(), 3U) << "nothing of before, and nothing of another identity";
  for (uint64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(told[i]->hash(), wire::hash_of(content(2 + i)));
    EXPECT_EQ(told[i]->key(), key_of(content(2 + i)));
  }
  for (uint64_t seed = 10; seed < 10 + ContentStore::kMaxFound; ++seed) model.push_back(add(content(seed)));
  EXPECT_TRUE(test::eventually([&] {
    std::this_thread::yield();
    return store_->counters().hashed_bytes == model.size() * kBytes;
  }));
  EXPECT_EQ(find(content(1)).size(), ContentStore::kMaxFound);
}

TEST_F(Contents, TheOnlyHoldMayWriteAndTheBlobLeaves) {
  const std::vector<std::byte> bytes = content(1);
  const auto first = add(bytes);
  auto holds = find(bytes);
  ASSERT_EQ(holds.size(), 1U);
  EXPECT_FALSE(first->claim()) << "somebody else reads it";
  EXPECT_FALSE(holds[0]->claim());
  EXPECT_EQ(store_->counters().blobs, 1U);
  holds.clear();
  EXPECT_TRUE(first->claim());
  EXPECT_EQ(store_->counters().blobs, 0U);
  std::memset(first->bytes().data(), 0, kBytes);
  EXPECT_TRUE(find(bytes).empty());
  EXPECT_TRUE(first->claim()) << "it stays so";
}

TEST_F(Contents, MemoryGoesWithTheLastHold) {
  const uint32_t before = RegionMemory::live();
  const std::vector<std::byte> bytes = content(1);
  auto first = add(bytes);
  auto holds = find(bytes);
  first.reset();
  EXPECT_EQ(RegionMemory::live(), before + 1);
  ASSERT_EQ(holds.size(), 1U);
  EXPECT_TRUE(std::ranges::equal(holds[0]->bytes(), bytes)) << "whoever brought it may go";
  holds.clear();
  EXPECT_TRUE(test::eventually([&] { return RegionMemory::live() == before; }));
  EXPECT_TRUE(find(bytes).empty());
}

// The hasher may be in the middle: whoever waits is told all the same, and whoever writes does not write under it.
TEST_F(Contents, BlobsThatLeaveWhileTheyAreHashed) {
  const std::vector<std::byte> bytes = content(1, size_t{16} << 20);
  for (uint64_t round = 1; round <= 10; ++round) {
    auto hold = add(bytes);
    const bool settled = store_->find(key_of(bytes), listener_, 1000 + round).settled;
    if (round % 2 == 0) {
      EXPECT_TRUE(hold->claim());
      std::memset(hold->bytes().data(), static_cast<int>(round), hold->bytes().size());
    }
    hold.reset();
    EXPECT_TRUE(settled || test::eventually([&] { return listener_->last.load() == 1000 + round; }));
    EXPECT_EQ(store_->counters().blobs, 0U);
  }
}

TEST_F(Contents, NobodyIsToldAfterTheEnd) {
  const std::vector<std::byte> bytes = content(1, size_t{16} << 20);
  const auto hold = add(bytes);
  (void)store_->find(key_of(bytes), listener_, 7);
  store_->stop();
  const uint64_t told = listener_->last.load();
  EXPECT_TRUE(told == 0 || told == 7);
  EXPECT_EQ(add(content(2)), nullptr);
  EXPECT_TRUE(hold->claim());
  EXPECT_EQ(listener_->last.load(), told);
}

// Sessions that come, read, write and go: what one reads through a hold is what it asked for, whoever writes meanwhile.
TEST_F(Contents, ReadersNeverSeeWhatAWriterWrites) {
  constexpr size_t kContents = 3;
  constexpr int kThreads = 4;
  constexpr int kRounds = 60;
  const uint64_t random_seed = test::random_seed();
  std::vector<std::vector<std::byte>> contents;
  for (uint64_t seed = 0; seed < kContents; ++seed) contents.push_back(content(seed));
  std::atomic<int> wrong{0};
  std::atomic<int> written{0};
  std::atomic<int> shared{0};
  std::latch begin(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(random_seed + static_cast<uint64_t>(t));
      begin.arrive_and_wait();
      std::vector<std::shared_ptr<ContentHold>> kept(kContents);
      for (int round = 0; round < kRounds; ++round) {
        const size_t which = random() % kContents;
        const std::vector<std::byte>& wanted = contents[which];
        std::shared_ptr<ContentHold>& mine = kept[which];
        if (mine == nullptr) {
          ContentStore::Found found = store_->find(key_of(wanted), listener_, 1);
          const Deadline deadline = Deadline::after_ms(test::kPatienceMs);
          while (!found.settled && !deadline.expired()) {
            std::this_thread::yield();
            found = store_->find(key_of(wanted), listener_, 1);
          }
          if (!found.settled) ++wrong;
          if (!found.holds.empty()) ++shared;
          mine = found.holds.empty() ? add(wanted) : std::move(found.holds[0]);
          if (mine == nullptr) continue;
        }
        if (std::memcmp(mine->bytes().data(), wanted.data(), wanted.size()) != 0) ++wrong;
        if (random() % 4 != 0) continue;
        if (mine->claim()) {
          std::memset(mine->bytes().data(), 0xEE, mine->bytes().size());
          ++written;
        }
        mine.reset();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(written, 0);
  EXPECT_GT(shared, 0);
  EXPECT_EQ(store_->counters().blobs, 0U);
}

}  // namespace
}  // namespace genie::node
