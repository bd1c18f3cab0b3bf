#include "datapath/memory/populate.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

#include "datapath/base/file_descriptor.h"
#include "datapath/base/log.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace genie::datapath {
namespace {

std::atomic<uint64_t> huge_bytes{0};
std::atomic<uint64_t> plain_bytes{0};
std::atomic<uint64_t> fallbacks{0};

// The word in brackets of a sysfs choice such as "always [madvise] never".
std::string_view chosen_word(std::string_view line) noexcept {
  const size_t open = line.find('[');
  const size_t close = line.find(']');
  if (open == std::string_view::npos || close == std::string_view::npos || close < open) return {};
  return line.substr(open + 1, close - open - 1);
}

// Whole 2 MiB pages; false when ordinary ones have to do.
bool populate_huge(std::byte* begin, size_t size, PageMethod how) noexcept {
  if (how == PageMethod::kAdvice) return ::madvise(begin, size, MADV_HUGEPAGE) == 0 && prefault(begin, size).ok();
  // A range of 2 MiB without any page is not collapsed: one is made present in each, which keeps its content.
  for (size_t offset = 0; offset < size; offset += kHugePageBytes) {
    if (!prefault(begin + offset, page_bytes()).ok()) return false;
  }
  return ::madvise(begin, size, MADV_COLLAPSE) == 0;
}

// Whether this kernel collapses shared memory, tried on one page.
bool can_collapse() noexcept {
  const FileDescriptor file(::memfd_create("genie-probe", MFD_CLOEXEC));
  if (!file.valid() || ::ftruncate(file.get(), kHugePageBytes) != 0) return false;
  std::byte* const at = reserve_aligned(kHugePageBytes);
  if (at == nullptr) return false;
  const bool can =
      ::mmap(at, kHugePageBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file.get(), 0) != MAP_FAILED &&
      populate_huge(at, kHugePageBytes, PageMethod::kCollapse);
  ::munmap(at, kHugePageBytes);
  return can;
}

PageMethod choose() noexcept {
  std::array<char, 256> text{};
  const FileDescriptor file(::open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", O_RDONLY | O_CLOEXEC));
  const ssize_t got = file.valid() ? ::read(file.get(), text.data(), text.size()) : 0;
  const std::string_view word = chosen_word({text.data(), got > 0 ? static_cast<size_t>(got) : 0});
  // No file: a kernel without transparent huge pages.
  if (word.empty() || word == "deny") return PageMethod::kPlain;
  if (word != "never") return PageMethod::kAdvice;
  // "never" is about page faults only.
  return can_collapse() ? PageMethod::kCollapse : PageMethod::kPlain;
}

std::atomic<PageMethod>& method() noexcept {
  static std::atomic<PageMethod> chosen{[] {
    const PageMethod first = choose();
    GENIE_LOG_INFO("shared memory is made present {}", page_method_name(first));
    return first;
  }()};
  return chosen;
}

// Prefaults [from, to) of `memory`.
Status populate_plain(std::span<std::byte> memory, size_t from, size_t to) noexcept {
  if (from >= to) return {};
  plain_bytes.fetch_add(to - from, std::memory_order_relaxed);
  return prefault(memory.data() + from, to - from);
}

void unmap_block(void*, std::byte* data, size_t size) noexcept { ::munmap(data, round_up(size, page_bytes())); }

}  // namespace

const char* page_method_name(PageMethod method) noexcept {
  switch (method) {
    case PageMethod::kAdvice: return "in huge pages, by advice";
    case PageMethod::kCollapse: return "in huge pages, by collapsing";
    case PageMethod::kPlain: break;
  }
  return "in ordinary pages";
}

PageMethod shared_page_method() noexcept { return method().load(std::memory_order_relaxed); }
void set_shared_page_method(PageMethod chosen) noexcept { method().store(chosen, std::memory_order_relaxed); }

std::byte* reserve_aligned(size_t size) noexcept {
  const size_t padding = size >= kHugePageBytes ? kHugePageBytes : 0;
  void* raw = ::mmap(nullptr, size + padding, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<std::byte*>(raw);
  if (padding == 0) return begin;
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const size_t head = round_up(address, kHugePageBytes) - address;
  if (head != 0) ::munmap(begin, head);
  if (head != padding) ::munmap(begin + head + size, padding - head);
  return begin + head;
}

Status populate_shared(std::span<std::byte> memory) noexcept {
  const PageMethod how = shared_page_method();
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  const size_t first = round_up(address, kHugePageBytes) - address;
  const size_t last = (address + memory.size()) / kHugePageBytes * kHugePageBytes;
  if (how == PageMethod::kPlain || last < address + first || last - address == first) {
    return populate_plain(memory, 0, memory.size());
  }
  const size_t end = last - address;
  if (!populate_huge(memory.data() + first, end - first, how)) {
    // No free 2 MiB, or the range is busy: the next one may go better.
    fallbacks.fetch_add(1, std::memory_order_relaxed);
    return populate_plain(memory, 0, memory.size());
  }
  huge_bytes.fetch_add(end - first, std::memory_order_relaxed);
  GENIE_TRY(populate_plain(memory, 0, first));
  return populate_plain(memory, end, memory.size());
}

Result<Buffer> map_block(size_t size) {
  if (size == 0 || size > SIZE_MAX / 4) return Status(Errc::kInvalidArgument, "size of a block out of range");
  const size_t rounded = round_up(size, page_bytes());
  std::byte* const at = reserve_aligned(rounded);
  if (at == nullptr || ::mprotect(at, rounded, PROT_READ | PROT_WRITE) != 0) {
    const int error = errno;
    if (at != nullptr) ::munmap(at, rounded);
    return Status(Errc::kOutOfMemory, "cannot map " + std::to_string(size) + " bytes: " + std::strerror(error));
  }
  // Where the kernel has no huge pages this says no, and ordinary ones come.
  (void)::madvise(at, rounded, MADV_HUGEPAGE);
  return Buffer(at, size, MemoryKey(), &unmap_block, nullptr);
}

PopulateCounters populate_counters() noexcept {
  return {.huge_bytes = huge_bytes.load(std::memory_order_relaxed),
          .plain_bytes = plain_bytes.load(std::memory_order_relaxed),
          .fallbacks = fallbacks.load(std::memory_order_relaxed)};
}

}  // namespace genie::datapath
