// With a stand-in for CUDA's driver (tests/gpu_driver): this machine need not have a GPU.
#include "datapath/memory/gpu_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/gpu_driver/gpu_driver.h"

namespace genie::datapath {
namespace {

constexpr size_t kBytes = 64 << 10;

class GpuMemory : public testing::Test {
 protected:
  void TearDown() override {
    test::free_gpu_memory(memory_);
    test::export_gpu_memory(false);
    test::fail_gpu_copies(0);
  }
  std::byte* memory_ = test::allocate_gpu_memory(kBytes);
};

TEST_F(GpuMemory, IsToldFromTheHosts) {
  const std::array<std::byte, 64> host{};
  EXPECT_TRUE(GpuCopier::make(memory_).ok());
  EXPECT_TRUE(GpuCopier::make(memory_ + kBytes - 1).ok());
  for (const std::byte* other : {static_cast<const std::byte*>(memory_) + kBytes, host.data()}) {
    EXPECT_EQ(GpuCopier::make(other).status().code(), Errc::kUnsupported);
  }
}

TEST_F(GpuMemory, IsCopiedBothWaysByAnyThread) {
  std::vector<std::byte> out(kBytes, std::byte{7});
  std::vector<std::byte> back(kBytes);
  {
    const Result<GpuCopier> copier = GpuCopier::make(memory_);
    ASSERT_TRUE(copier.ok()) << copier.status().to_string();
    std::thread([&] { EXPECT_TRUE(copier->copy(memory_, out.data(), kBytes).ok()); }).join();
    ASSERT_TRUE(copier->copy(memory_ + 100, out.data() + 1, 1).ok());
    ASSERT_TRUE(copier->copy(back.data(), memory_, kBytes).ok());
  }
  EXPECT_EQ(back, out);
  EXPECT_EQ(test::gpu_handles_open(), 0);
}

TEST_F(GpuMemory, ACopyThatFailsSaysWhy) {
  std::array<std::byte, 16> host{};
  const Result<GpuCopier> copier = GpuCopier::make(memory_);
  ASSERT_TRUE(copier.ok());
  test::fail_gpu_copies(1);
  const Status failed = copier->copy(host.data(), memory_, host.size());
  EXPECT_EQ(failed.code(), Errc::kIo);
  EXPECT_NE(failed.text().find("719"), std::string_view::npos) << failed.text();
  EXPECT_TRUE(copier->copy(host.data(), memory_, host.size()).ok()) << "the next one works";
}

TEST_F(GpuMemory, IsExportedInWholePages) {
  const std::array<std::byte, 3> bytes{std::byte{1}, std::byte{2}, std::byte{3}};
  const Result<GpuCopier> copier = GpuCopier::make(memory_);
  ASSERT_TRUE(copier.ok() && copier->copy(memory_ + 5000, bytes.data(), bytes.size()).ok());
  EXPECT_EQ(export_dma_buf({memory_ + 5000, 3}).status().code(), Errc::kUnsupported);
  test::export_gpu_memory(true);
  const Result<DmaBuf> exported = export_dma_buf({memory_ + 5000, 3});
  ASSERT_TRUE(exported.ok()) << exported.status().to_string();
  EXPECT_EQ(exported->offset, size_t{5000 % 4096});
  std::array<std::byte, 3> seen{};
  ASSERT_EQ(::pread(exported->fd.get(), seen.data(), seen.size(), 5000), 3);
  EXPECT_EQ(seen, bytes);
}

}  // namespace
}  // namespace genie::datapath
