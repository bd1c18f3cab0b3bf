// Pages: mapping and pre-faulting of anonymous memory.
//
// Purpose: one place that knows mmap's flags; hugepages with a fall-back that is said once, loudly.
// Thread-safety: all functions may be called from any thread.
// Ownership: PageMapping is move-only and unmaps when it goes.
#pragma once

#include <cstddef>
#include <utility>

#include "genie/status.h"

namespace genie::datapath {

inline constexpr size_t kHugePageBytes = size_t{2} << 20;

size_t page_bytes() noexcept;
// `size` rounded up to a multiple of `unit` (a power of two). The caller bounds `size`.
constexpr size_t round_up(size_t size, size_t unit) noexcept { return (size + unit - 1) & ~(unit - 1); }

// Makes every page of a writable mapping present, so that no fault comes later. kOutOfMemory instead of a signal.
Status prefault(std::byte* data, size_t size) noexcept;

// Makes every page of a mapping readable without a fault. An error instead of a signal where there is no memory for a hole.
Status prefault_read(const std::byte* data, size_t size) noexcept;

class PageMapping {
 public:
  PageMapping() noexcept = default;
  PageMapping(std::byte* data, size_t size, bool hugepages) noexcept
      : data_(data), size_(size), hugepages_(hugepages) {}
  PageMapping(PageMapping&& other) noexcept { swap(other); }
  PageMapping& operator=(PageMapping&& other) noexcept {
    PageMapping taken(std::move(other));
    swap(taken);
    return *this;
  }
  PageMapping(const PageMapping&) = delete;
  PageMapping& operator=(const PageMapping&) = delete;
  ~PageMapping();

  std::byte* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }
  bool hugepages() const noexcept { return hugepages_; }

 private:
  void swap(PageMapping& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(hugepages_, other.hugepages_);
  }

  std::byte* data_ = nullptr;
  size_t size_ = 0;
  bool hugepages_ = false;
};

// Zeroed, pre-faulted, private memory of at least `size` bytes, aligned to 2 MiB. Tries hugetlb pages first when
// `want_hugepages`; without them ordinary pages, with a warning once per process.
Result<PageMapping> map_pages(size_t size, bool want_hugepages);

}  // namespace genie::datapath
