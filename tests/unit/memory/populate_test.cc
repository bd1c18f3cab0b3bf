#include "datapath/memory/populate.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "datapath/base/file_descriptor.h"

namespace genie::datapath {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// Every way must give the same memory.
class Populate : public testing::TestWithParam<PageMethod> {
 protected:
  void SetUp() override {
    before_ = shared_page_method();
    set_shared_page_method(GetParam());
  }
  void TearDown() override { set_shared_page_method(before_); }

  std::span<std::byte> map(size_t size) {
    file_ = FileDescriptor(::memfd_create("populate", MFD_CLOEXEC));
    EXPECT_EQ(::ftruncate(file_.get(), static_cast<off_t>(size)), 0);
    std::byte* const at = reserve_aligned(size);
    EXPECT_NE(at, nullptr);
    EXPECT_NE(::mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file_.get(), 0), MAP_FAILED);
    return {at, size};
  }
  // Pages of [memory) that are present in the file.
  static size_t present(std::span<std::byte> memory) {
    std::vector<unsigned char> pages(memory.size() / page_bytes());
    EXPECT_EQ(::mincore(memory.data(), memory.size(), pages.data()), 0);
    return static_cast<size_t>(std::ranges::count_if(pages, [](unsigned char page) { return (page & 1U) != 0; }));
  }

  FileDescriptor file_;
  PageMethod before_ = PageMethod::kPlain;
};

TEST_P(Populate, MakesExactlyTheRangePresent) {
  const std::span<std::byte> memory = map(16 * kMiB);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data()) % kHugePageBytes, 0U);
  const PopulateCounters before = populate_counters();
  // A tail of ordinary pages behind two huge ones.
  ASSERT_TRUE(populate_shared(memory.first(4 * kMiB + 3 * page_bytes())).ok());
  EXPECT_EQ(present(memory), 4 * kMiB / page_bytes() + 3);
  const PopulateCounters after = populate_counters();
  EXPECT_EQ(after.huge_bytes + after.plain_bytes - before.huge_bytes - before.plain_bytes, 4 * kMiB + 3 * page_bytes());
  if (GetParam() == PageMethod::kPlain) {
    EXPECT_EQ(after.huge_bytes, before.huge_bytes);
  }
  ::munmap(memory.data(), memory.size());
}

TEST_P(Populate, KeepsWhatTheMemoryHolds) {
  const std::span<std::byte> memory = map(8 * kMiB);
  EXPECT_TRUE(std::ranges::all_of(memory.first(kMiB), [](std::byte byte) { return byte == std::byte{0}; }));
  for (size_t i = 0; i < memory.size(); i += 1000) memory[i] = std::byte(i % 251);
  ASSERT_TRUE(populate_shared(memory).ok());
  for (size_t i = 0; i < memory.size(); i += 1000) ASSERT_EQ(memory[i], std::byte(i % 251)) << i;
  ASSERT_TRUE(populate_shared(memory).ok()) << "again";
  EXPECT_EQ(present(memory), memory.size() / page_bytes());
  ::munmap(memory.data(), memory.size());
}

TEST_P(Populate, SmallMemoryIsNotRoundedUp) {
  const std::span<std::byte> memory = map(2 * page_bytes());
  ASSERT_TRUE(populate_shared(memory).ok());
  EXPECT_EQ(present(memory), 2U);
  ::munmap(memory.data(), memory.size());
}

TEST_P(Populate, ARangeThatIsNotMappedIsAnErrorNotASignal) {
  std::byte* const at = reserve_aligned(4 * kMiB);
  ASSERT_NE(at, nullptr);
  EXPECT_FALSE(populate_shared({at, 4 * kMiB}).ok());
  ::munmap(at, 4 * kMiB);
}

INSTANTIATE_TEST_SUITE_P(Ways, Populate,
                         testing::Values(PageMethod::kAdvice, PageMethod::kCollapse, PageMethod::kPlain),
                         [](const auto& info) {
                           return info.param == PageMethod::kAdvice     ? "Advice"
                                  : info.param == PageMethod::kCollapse ? "Collapse"
                                                                        : "Plain";
                         });

// Where the kernel collapses at all, shared memory really is in huge pages afterwards.
TEST(PopulateShared, CollapsedMemoryIsHuge) {
  if (shared_page_method() != PageMethod::kCollapse) GTEST_SKIP() << page_method_name(shared_page_method());
  const PopulateCounters before = populate_counters();
  const FileDescriptor file(::memfd_create("populate", MFD_CLOEXEC));
  constexpr size_t kSize = 8 * kMiB;
  ASSERT_EQ(::ftruncate(file.get(), kSize), 0);
  std::byte* const at = reserve_aligned(kSize);
  ASSERT_NE(::mmap(at, kSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file.get(), 0), MAP_FAILED);
  ASSERT_TRUE(populate_shared({at, kSize}).ok());
  const PopulateCounters after = populate_counters();
  if (after.fallbacks != before.fallbacks) GTEST_SKIP() << "the kernel had no free huge pages";
  std::ifstream maps("/proc/self/smaps");
  std::ostringstream wanted;
  wanted << std::hex << reinterpret_cast<uintptr_t>(at) << '-';
  size_t huge_kb = 0;
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.find('-') != std::string::npos && line.find(' ') != std::string::npos && line.find(':') > 20) {
      inside = line.starts_with(wanted.str());
    }
    if (inside && line.starts_with("ShmemPmdMapped:")) huge_kb = std::stoul(line.substr(line.find(':') + 1));
  }
  EXPECT_EQ(huge_kb, kSize / 1024);
  ::munmap(at, kSize);
}

TEST(MapBlock, IsPrivateMemoryThatIsPresentOnlyWhereUsed) {
  constexpr size_t kSize = 32 * kMiB + 5;
  Result<Buffer> block = map_block(kSize);
  ASSERT_TRUE(block.ok()) << block.status().to_string();
  EXPECT_EQ(block->size(), kSize);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(block->data()) % kHugePageBytes, 0U);
  std::vector<unsigned char> pages((kSize + page_bytes() - 1) / page_bytes());
  ASSERT_EQ(::mincore(block->data(), kSize, pages.data()), 0);
  EXPECT_EQ(std::ranges::count_if(pages, [](unsigned char page) { return (page & 1U) != 0; }), 0);
  std::memset(block->data(), 7, kSize);
  EXPECT_EQ(block->data()[kSize - 1], std::byte{7});
}

TEST(MapBlock, SizesThatMakeNoSenseAreRefused) {
  EXPECT_EQ(map_block(0).code(), Errc::kInvalidArgument);
  EXPECT_EQ(map_block(SIZE_MAX).code(), Errc::kInvalidArgument);
  EXPECT_EQ(map_block(SIZE_MAX / 8).code(), Errc::kOutOfMemory);
}

}  // namespace
}  // namespace genie::datapath
