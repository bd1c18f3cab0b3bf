#include "datapath/shm/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

namespace genie::datapath {
namespace {

constexpr size_t kSize = 10'000;

class SharedMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<FileDescriptor> fd = make_sealed_memory(kSize);
    ASSERT_TRUE(fd.ok()) << fd.status().to_string();
    fd_ = std::move(*fd);
  }
  FileDescriptor fd_;
};

TEST_F(SharedMemoryTest, NobodyCanResizeIt) {
  EXPECT_NE(::ftruncate(fd_.get(), 0), 0);
  EXPECT_EQ(errno, EPERM);
  EXPECT_NE(::ftruncate(fd_.get(), 1 << 20), 0);
  EXPECT_EQ(errno, EPERM);
}

TEST_F(SharedMemoryTest, SizesThatMakeNoSenseAreRefused) {
  EXPECT_EQ(make_sealed_memory(0).code(), Errc::kInvalidArgument);
  EXPECT_EQ(make_sealed_memory(SIZE_MAX).code(), Errc::kInvalidArgument);
}

TEST_F(SharedMemoryTest, TwoMappingsAreTheSameMemory) {
  EXPECT_TRUE(populate(fd_.get(), 0, kSize).ok());
  Result<SharedMapping> first = SharedMapping::map(fd_.get(), kSize);
  Result<SharedMapping> second = SharedMapping::map(fd_.get(), kSize);
  ASSERT_TRUE(first.ok() && second.ok());
  first->data()[kSize - 1] = std::byte{9};
  EXPECT_EQ(second->data()[kSize - 1], std::byte{9});
}

TEST_F(SharedMemoryTest, ADescriptorThatIsNotSealedIsRefused) {
  const FileDescriptor open(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(open.get(), 4096), 0);
  EXPECT_EQ(SharedMapping::map(open.get(), 4096).code(), Errc::kProtocol);
  const FileDescriptor file(::open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(SharedMapping::map(file.get(), 4096).code(), Errc::kProtocol);
  EXPECT_EQ(SharedMapping::map(-1, 4096).code(), Errc::kProtocol);
}

TEST_F(SharedMemoryTest, ADescriptorOfAnotherSizeIsRefused) {
  EXPECT_EQ(SharedMapping::map(fd_.get(), 100'000).code(), Errc::kProtocol);
  EXPECT_EQ(SharedMapping::map(fd_.get(), 0).code(), Errc::kProtocol);
}

TEST_F(SharedMemoryTest, TakePrivateShutsEveryWriterOut) {
  SharedMapping ours = std::move(*SharedMapping::map(fd_.get(), kSize));
  std::byte* const where = ours.data();
  {
    SharedMapping theirs = std::move(*SharedMapping::map(fd_.get(), kSize));
    std::memset(theirs.data(), 0x21, kSize);
    EXPECT_EQ(ours.take_private(fd_.get(), kSize).code(), Errc::kBusy);
    theirs.data()[0] = std::byte{0x22};
    EXPECT_EQ(ours.data()[0], std::byte{0x22}) << "still shared";
  }
  Result<Buffer> taken = ours.take_private(fd_.get(), kSize);
  ASSERT_TRUE(taken.ok());
  EXPECT_EQ(taken->data(), where);
  EXPECT_EQ(taken->size(), kSize);
  EXPECT_EQ(taken->data()[0], std::byte{0x22});
  EXPECT_EQ(ours.data(), nullptr);
  const char byte = 1;
  EXPECT_LT(::pwrite(fd_.get(), &byte, 1, 0), 0);
  EXPECT_NE(::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
  EXPECT_EQ(SharedMapping::map(fd_.get(), kSize).code(), Errc::kStale);
  taken->data()[0] = std::byte{0x55};
  char original = 0;
  EXPECT_EQ(::pread(fd_.get(), &original, 1, 0), 1);
  EXPECT_EQ(original, 0x22) << "our writes stay ours";
}

TEST_F(SharedMemoryTest, APeerThatForbidsSealsMakesTakingImpossible) {
  SharedMapping ours = std::move(*SharedMapping::map(fd_.get(), kSize));
  ASSERT_EQ(::fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_SEAL), 0);
  EXPECT_EQ(ours.take_private(fd_.get(), kSize).code(), Errc::kPermission);
  ours.data()[0] = std::byte{1};
  char shared = 0;
  EXPECT_EQ(::pread(fd_.get(), &shared, 1, 0), 1);
  EXPECT_EQ(shared, 1) << "still shared";
}

}  // namespace
}  // namespace genie::datapath
