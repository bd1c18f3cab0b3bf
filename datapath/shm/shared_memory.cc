#include "datapath/shm/shared_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "datapath/memory/pages.h"
#include "datapath/memory/populate.h"

namespace genie::datapath {
namespace {

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010  // Linux 5.1; the C library's headers may be older
#endif

constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;

Status system_error(const char* what) {
  const Errc code = errno == ENOMEM || errno == ENOSPC   ? Errc::kOutOfMemory
                    : errno == EMFILE || errno == ENFILE ? Errc::kQuotaExceeded
                                                         : Errc::kIo;
  return Status(code, std::string(what) + ": " + std::strerror(errno));
}

void unmap(void*, std::byte* data, size_t size) noexcept { ::munmap(data, round_up(size, page_bytes())); }
void unmap_huge(void*, std::byte* data, size_t size) noexcept { ::munmap(data, round_up(size, kHugePageBytes)); }

bool is_hugetlb(int fd) noexcept {
  struct statfs info {};
  return ::fstatfs(fd, &info) == 0 && info.f_type == HUGETLBFS_MAGIC;
}

}  // namespace

Result<FileDescriptor> make_sealed_memory(size_t size) {
  if (size == 0 || size > SIZE_MAX / 4) return Status(Errc::kInvalidArgument, "size of a shared region out of range");
  FileDescriptor fd(::memfd_create("genie", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return system_error("cannot create shared memory (too many open files? raise 'ulimit -n')");
  if (::ftruncate(fd.get(), static_cast<off_t>(round_up(size, page_bytes()))) != 0) {
    return system_error("cannot size shared memory");
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, kSizeSeals) != 0) return system_error("cannot seal shared memory");
  return fd;
}

Status seal_for_others(int fd) {
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0)
    return system_error("cannot seal shared memory");
  return {};
}

Status populate(int fd, size_t offset, size_t size) {
  int result;
  do {
    result = ::fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(size));
  } while (result != 0 && errno == EINTR);
  if (result != 0) return system_error("cannot make shared memory present");
  return {};
}

Status seal_against_writing(int fd) {
  return ::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0 ? Status() : system_error("cannot seal shared memory");
}

// The seals are looked at first: what they hold can no longer change afterwards.
Result<Taken> take_memory(int fd, size_t size) {
  struct stat info {};
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kSizeSeals) != kSizeSeals || ::fstat(fd, &info) != 0) {
    return Status(Errc::kProtocol, "the peer's memory is not sealed against resizing");
  }
  const bool huge = is_hugetlb(fd);
  const bool final = (seals & F_SEAL_WRITE) != 0;
  const size_t rounded = round_up(size, huge ? kHugePageBytes : page_bytes());
  if (size == 0 || size > SIZE_MAX / 4 || static_cast<uint64_t>(info.st_size) < rounded) {
    return Status(Errc::kProtocol, "the peer's memory is smaller than it says");
  }
  // A hole in the pool's pages would be a signal here, and without the seal the peer may make one at any time.
  if (huge && !final) return Status(Errc::kProtocol, "the peer's huge pages are not sealed against writing");
  std::byte* const at = reserve_aligned(rounded);
  if (at == nullptr) return system_error("cannot map the peer's memory");
  if (::mmap(at, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) == MAP_FAILED) {
    const Status why = system_error("cannot map the peer's memory");
    ::munmap(at, rounded);
    return why;
  }
  constexpr size_t kBlockBytes = 512;
  return Taken{.memory = Buffer(at, size, MemoryKey(), huge ? &unmap_huge : &unmap, nullptr),
               .final = final,
               .resident_bytes = std::max(rounded, static_cast<size_t>(info.st_blocks) * kBlockBytes)};
}

SharedMapping::~SharedMapping() {
  if (data_ != nullptr) ::munmap(data_, mapped_);
}

void SharedMapping::swap(SharedMapping& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(mapped_, other.mapped_);
  std::swap(private_, other.private_);
}

Result<SharedMapping> SharedMapping::map(int fd, size_t size) {
  struct stat info {};
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kSizeSeals) != kSizeSeals || ::fstat(fd, &info) != 0) {
    return Status(Errc::kProtocol, "the peer's shared memory is not sealed against resizing");
  }
  const size_t rounded = round_up(size, page_bytes());
  if (size == 0 || static_cast<uint64_t>(info.st_size) != rounded) {
    return Status(Errc::kProtocol, "the peer's shared memory has another size than its key");
  }
  if ((seals & F_SEAL_WRITE) != 0) return Errc::kStale;
  std::byte* const at = reserve_aligned(rounded);
  if (at == nullptr) return system_error("cannot map shared memory");
  // A small one is mapped page by page now; a large one as it is used, since that may take long.
  const int present = rounded < kHugePageBytes ? MAP_POPULATE : 0;
  const bool closed = (seals & F_SEAL_FUTURE_WRITE) != 0;  // populating would copy every page
  const int sharing = closed ? MAP_PRIVATE : MAP_SHARED | present;
  if (::mmap(at, rounded, PROT_READ | PROT_WRITE, sharing | MAP_FIXED, fd, 0) == MAP_FAILED) {
    const Status why = errno == EPERM ? Status(Errc::kStale)  // sealed in between
                                      : system_error("cannot map shared memory");
    ::munmap(at, rounded);
    return why;
  }
  SharedMapping mapping;
  mapping.data_ = at;
  mapping.mapped_ = rounded;
  mapping.private_ = closed;
  return mapping;
}

}  // namespace genie::datapath
