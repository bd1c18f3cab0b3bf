#include "datapath/memory/arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "tests/random_seed.h"

namespace genie::datapath {
namespace {

std::unique_ptr<Arena> make_arena(size_t size) {
  Result<std::unique_ptr<Arena>> arena = Arena::make({.size_bytes = size, .hugepages = false});
  EXPECT_TRUE(arena.ok()) << arena.status().to_string();
  return std::move(*arena);
}

TEST(Arena, BuffersAreAlignedInsideAndDisjoint) {
  auto arena = make_arena(4 << 20);
  Result<Buffer> first = arena->allocate(1);
  Result<Buffer> second = arena->allocate(100);
  ASSERT_TRUE(first.ok() && second.ok());
  for (const Buffer* buffer : {&*first, &*second}) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % Arena::kAlignment, 0U);
    EXPECT_TRUE(arena->contains(buffer->data(), buffer->size()));
  }
  EXPECT_GE(std::abs(first->data() - second->data()), 64);
  EXPECT_EQ(first->size(), 1U);
  EXPECT_EQ(arena->bytes_in_use(), 64U + 128U);
}

TEST(Arena, ServesItsWholeSizeAndThenRefuses) {
  auto arena = make_arena(4 << 20);
  EXPECT_EQ(arena->largest_free(), size_t{4} << 20);
  Result<Buffer> whole = arena->allocate(4 << 20);
  ASSERT_TRUE(whole.ok());
  EXPECT_EQ(arena->largest_free(), 0U);
  EXPECT_EQ(arena->allocate(1).code(), Errc::kOutOfMemory);
  *whole = Buffer();
  EXPECT_TRUE(arena->allocate(4 << 20).ok());
}

TEST(Arena, RefusesSizesThatMakeNoSense) {
  auto arena = make_arena(2 << 20);
  EXPECT_EQ(arena->allocate(0).code(), Errc::kInvalidArgument);
  EXPECT_EQ(arena->allocate(SIZE_MAX).code(), Errc::kOutOfMemory);
  EXPECT_EQ(Arena::make({.size_bytes = 0}).code(), Errc::kInvalidArgument);
  EXPECT_EQ(Arena::make({.size_bytes = SIZE_MAX}).code(), Errc::kInvalidArgument);
}

TEST(Arena, SizesRoundUpToHugePages) { EXPECT_EQ(make_arena(1)->memory().size(), size_t{2} << 20); }

TEST(Arena, ContainsKnowsItsBounds) {
  auto arena = make_arena(2 << 20);
  const std::byte* begin = arena->memory().data();
  EXPECT_TRUE(arena->contains(begin, 2 << 20));
  EXPECT_FALSE(arena->contains(begin, (2 << 20) + 1));
  EXPECT_FALSE(arena->contains(begin - 1, 1));
  EXPECT_FALSE(arena->contains(begin + 1, SIZE_MAX));
}

TEST(Arena, BuffersCarryTheArenasKey) {
  auto arena = make_arena(2 << 20);
  arena->set_key({7, 3});
  EXPECT_EQ(arena->allocate(10)->key(), (MemoryKey{7, 3}));
}

TEST(Arena, BuffersOutliveTheArena) {
  Buffer kept;
  {
    auto arena = make_arena(2 << 20);
    kept = std::move(*arena->allocate(4096));
  }
  std::memset(kept.data(), 0x5a, kept.size());
  EXPECT_EQ(kept.data()[4095], std::byte{0x5a});
}

// Random allocations and frees: live buffers never overlap, and when all are gone the arena is one piece again.
TEST(Arena, RandomLoadKeepsBuffersDisjointAndJoinsThem) {
  const uint64_t seed = test::random_seed();
  std::mt19937 random(seed);
  auto arena = make_arena(8 << 20);
  struct Live {
    Buffer buffer;
    unsigned char mark;
  };
  std::vector<Live> live;
  for (int step = 0; step < 20'000; ++step) {
    if (random() % 2 == 0 || live.empty()) {
      const size_t size = 1 + random() % (size_t{1} << (random() % 20));
      Result<Buffer> buffer = arena->allocate(size);
      if (!buffer.ok()) continue;
      const auto mark = static_cast<unsigned char>(random());
      std::memset(buffer->data(), mark, size);
      live.push_back({std::move(*buffer), mark});
    } else {
      std::swap(live[random() % live.size()], live.back());
      const Live& last = live.back();
      ASSERT_TRUE(std::all_of(last.buffer.data(), last.buffer.data() + last.buffer.size(),
                              [&](std::byte byte) { return byte == std::byte{last.mark}; }));
      live.pop_back();
    }
  }
  live.clear();
  EXPECT_EQ(arena->bytes_in_use(), 0U);
  EXPECT_EQ(arena->largest_free(), arena->memory().size());
}

TEST(Arena, ThreadsMayAllocateAndDropAtOnce) {
  auto arena = make_arena(16 << 20);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&arena, t] {
      std::mt19937 random(t);
      std::vector<Buffer> live;
      for (int step = 0; step < 5'000; ++step) {
        if (live.size() < 32) {
          Result<Buffer> buffer = arena->allocate(1 + random() % 10'000);
          if (buffer.ok()) live.push_back(std::move(*buffer));
        } else {
          std::swap(live[random() % live.size()], live.back());
          live.pop_back();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(arena->bytes_in_use(), 0U);
  EXPECT_EQ(arena->largest_free(), arena->memory().size());
}

TEST(Arena, FallsBackToOrdinaryPages) {
  Result<std::unique_ptr<Arena>> arena = Arena::make({.size_bytes = 2 << 20, .hugepages = true});
  ASSERT_TRUE(arena.ok());
  Result<Buffer> buffer = (*arena)->allocate(2 << 20);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ(buffer->data()[(2 << 20) - 1], std::byte{0});
}

}  // namespace
}  // namespace genie::datapath
