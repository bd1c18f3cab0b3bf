#include "datapath/base/differences.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/random_seed.h"

namespace genie {
namespace {

std::vector<size_t> differences(const std::vector<uint64_t>& left, const std::vector<uint64_t>& right) {
  std::vector<size_t> found;
  for_each_difference(left.data(), right.data(), left.size(), [&](size_t at) { found.push_back(at); });
  return found;
}

TEST(Differences, ThereAreNoneAmongEqualNumbers) {
  for (size_t count = 0; count < 70; ++count) {
    const std::vector<uint64_t> numbers(count, UINT64_MAX);
    EXPECT_TRUE(differences(numbers, numbers).empty()) << count;
  }
}

TEST(Differences, EveryBitOfEveryNumberCounts) {
  constexpr size_t kCount = 37;
  const std::vector<uint64_t> left(kCount, 0x0123'4567'89AB'CDEF);
  for (size_t at = 0; at < kCount; ++at) {
    for (unsigned bit = 0; bit < 64; ++bit) {
      std::vector<uint64_t> right = left;
      right[at] ^= uint64_t{1} << bit;
      EXPECT_EQ(differences(left, right), std::vector<size_t>{at}) << "bit " << bit;
    }
  }
}

TEST(Differences, AreFoundInOrder) {
  std::mt19937_64 random(test::random_seed());
  for (int round = 0; round < 1'000; ++round) {
    std::vector<uint64_t> left(random() % 100);
    std::vector<uint64_t> right(left.size());
    std::vector<size_t> expected;
    for (size_t at = 0; at < left.size(); ++at) {
      left[at] = right[at] = random();
      if (random() % 4 != 0) continue;
      right[at] += uint64_t{1} << (random() % 64);
      expected.push_back(at);
    }
    EXPECT_EQ(differences(left, right), expected);
  }
}

}  // namespace
}  // namespace genie
