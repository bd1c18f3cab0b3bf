#include "datapath/shm/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
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

TEST_F(SharedMemoryTest, ASealShutsEveryWriterOut) {
  {
    const SharedMapping mapped = std::move(*SharedMapping::map(fd_.get(), kSize));
    std::memset(mapped.data(), 0x21, kSize);
    EXPECT_FALSE(seal_against_writing(fd_.get()).ok()) << "somebody maps it writable";
    const Result<Taken> early = take_memory(fd_.get(), kSize);
    ASSERT_TRUE(early.ok());
    EXPECT_FALSE(early->final);
    EXPECT_EQ(early->memory.data()[0], std::byte{0x21});
  }
  ASSERT_TRUE(seal_against_writing(fd_.get()).ok());
  const Result<Taken> taken = take_memory(fd_.get(), kSize);
  ASSERT_TRUE(taken.ok());
  EXPECT_TRUE(taken->final);
  EXPECT_EQ(taken->memory.size(), kSize);
  EXPECT_GE(taken->resident_bytes, kSize);
  const char byte = 1;
  EXPECT_LT(::pwrite(fd_.get(), &byte, 1, 0), 0);
  EXPECT_NE(::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
  EXPECT_EQ(SharedMapping::map(fd_.get(), kSize).code(), Errc::kStale);
  taken->memory.data()[0] = std::byte{0x55};
  char original = 0;
  EXPECT_EQ(::pread(fd_.get(), &original, 1, 0), 1);
  EXPECT_EQ(original, 0x21) << "the taker's writes are its own";
}

TEST_F(SharedMemoryTest, MemoryThatMayShrinkOrIsShorterIsNotTaken) {
  EXPECT_EQ(take_memory(fd_.get(), 100'000).code(), Errc::kProtocol);
  EXPECT_EQ(take_memory(fd_.get(), 0).code(), Errc::kProtocol);
  EXPECT_EQ(take_memory(fd_.get(), SIZE_MAX).code(), Errc::kProtocol);
  const FileDescriptor open(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(open.get(), 4096), 0);
  EXPECT_EQ(take_memory(open.get(), 4096).code(), Errc::kProtocol);
  ASSERT_EQ(::fcntl(open.get(), F_ADD_SEALS, F_SEAL_WRITE), 0) << "sealed against writing alone";
  EXPECT_EQ(take_memory(open.get(), 4096).code(), Errc::kProtocol);
  const FileDescriptor device(::open("/dev/zero", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(take_memory(device.get(), 4096).code(), Errc::kProtocol);
  char path[] = "/tmp/genie-file-XXXXXX";
  const FileDescriptor file(::mkstemp(path));
  ::unlink(path);
  ASSERT_EQ(::ftruncate(file.get(), 4096), 0);
  EXPECT_EQ(take_memory(file.get(), 4096).code(), Errc::kProtocol);
  EXPECT_EQ(take_memory(-1, 4096).code(), Errc::kProtocol);
}

TEST_F(SharedMemoryTest, ClosedMemoryIsWrittenByItsMakerAlone) {
  const SharedMapping ours = std::move(*SharedMapping::map(fd_.get(), kSize));
  EXPECT_FALSE(ours.is_private());
  ASSERT_TRUE(seal_for_others(fd_.get()).ok());
  EXPECT_EQ(seal_for_others(fd_.get()).code(), Errc::kIo) << "no seal can be added any more";
  const std::string again = "/proc/self/fd/" + std::to_string(fd_.get());
  const FileDescriptor reopened(::open(again.c_str(), O_RDWR | O_CLOEXEC));
  for (const int fd : {fd_.get(), reopened.get()}) {
    EXPECT_EQ(::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    void* const readable = ::mmap(nullptr, kSize, PROT_READ, MAP_SHARED, fd, 0);
    ASSERT_NE(readable, MAP_FAILED);
    EXPECT_NE(::mprotect(readable, kSize, PROT_READ | PROT_WRITE), 0);
    ::munmap(readable, kSize);
    const char byte = 1;
    EXPECT_LT(::pwrite(fd, &byte, 1, 0), 0);
    EXPECT_NE(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
  }
  const SharedMapping theirs = std::move(*SharedMapping::map(reopened.get(), kSize));
  EXPECT_TRUE(theirs.is_private());
  theirs.data()[0] = std::byte{1};
  EXPECT_EQ(ours.data()[0], std::byte{0});
  ours.data()[kSize - 1] = std::byte{2};
  EXPECT_EQ(theirs.data()[kSize - 1], std::byte{2});
}

}  // namespace
}  // namespace genie::datapath
