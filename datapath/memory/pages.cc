#include "datapath/memory/pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>

#include "datapath/base/log.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace genie::datapath {
namespace {

constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS;

void warn_no_hugepages_once(int error) {
  static std::atomic<bool> said{false};
  if (said.exchange(true)) return;
  GENIE_LOG_WARN(
      "no 2 MiB hugepages ({}): memory arenas use transparent huge pages where the kernel finds some, and ordinary "
      "ones; "
      "reserve some with 'sysctl vm.nr_hugepages=N'",
      std::strerror(error));
}

// Ordinary pages, aligned so that the kernel can still back them with transparent hugepages.
std::byte* map_aligned(size_t size) {
  const size_t padded = size + kHugePageBytes;
  void* raw = ::mmap(nullptr, padded, PROT_READ | PROT_WRITE, kAnonymous, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto* begin = static_cast<std::byte*>(raw);
  const size_t head = round_up(reinterpret_cast<uintptr_t>(begin), kHugePageBytes) - reinterpret_cast<uintptr_t>(begin);
  if (head != 0) ::munmap(begin, head);
  const size_t tail = padded - head - size;
  if (tail != 0) ::munmap(begin + head + size, tail);
  ::madvise(begin + head, size, MADV_HUGEPAGE);
  return begin + head;
}

}  // namespace

size_t page_bytes() noexcept {
  static const size_t bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

Status prefault(std::byte* data, size_t size) noexcept {
  // A kernel before 5.14 does not know it; there, touching is the only way.
  static const bool known = ::madvise(nullptr, 0, MADV_POPULATE_WRITE) == 0;
  if (known) return ::madvise(data, size, MADV_POPULATE_WRITE) == 0 ? Status() : Status(Errc::kOutOfMemory);
  const size_t step = page_bytes();
  for (size_t offset = 0; offset < size; offset += step) {
    auto* byte = reinterpret_cast<volatile unsigned char*>(data + offset);
    *byte = *byte;
  }
  return {};
}

Status prefault_read(const std::byte* data, size_t size) noexcept {
  static const bool known = ::madvise(nullptr, 0, MADV_POPULATE_READ) == 0;
  const auto begin = reinterpret_cast<uintptr_t>(data) / page_bytes() * page_bytes();
  const size_t whole = reinterpret_cast<uintptr_t>(data) + size - begin;
  if (!known || ::madvise(reinterpret_cast<void*>(begin), whole, MADV_POPULATE_READ) == 0) return {};
  return Errc::kOutOfMemory;
}

PageMapping::~PageMapping() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Result<PageMapping> map_pages(size_t size, bool want_hugepages) {
  if (size == 0 || size > SIZE_MAX / 4) return Status(Errc::kInvalidArgument, "size of a mapping out of range");
  const size_t rounded = round_up(size, kHugePageBytes);
  if (want_hugepages) {
    constexpr int kTwoMegabytes = 21 << MAP_HUGE_SHIFT;
    void* data = ::mmap(nullptr, rounded, PROT_READ | PROT_WRITE, kAnonymous | MAP_HUGETLB | kTwoMegabytes, -1, 0);
    if (data != MAP_FAILED) {
      PageMapping mapping(static_cast<std::byte*>(data), rounded, true);
      if (prefault(mapping.data(), rounded).ok()) return mapping;
      errno = ENOMEM;
    }
    warn_no_hugepages_once(errno);
  }
  std::byte* data = map_aligned(rounded);
  if (data == nullptr) {
    return Status(Errc::kOutOfMemory, "cannot map " + std::to_string(rounded) + " bytes: " + std::strerror(errno));
  }
  PageMapping mapping(data, rounded, false);
  if (!prefault(data, rounded).ok()) {
    return Status(Errc::kOutOfMemory, "cannot make " + std::to_string(rounded) + " bytes present");
  }
  return mapping;
}

}  // namespace genie::datapath
