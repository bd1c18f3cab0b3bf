// SpanAllocator: places in a window of memory, first fit, given back in any order.
//
// Thread-safety: none; its owner locks. Ownership: knows offsets only, never touches the memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>

namespace genie::session {

class SpanAllocator {
 public:
  static constexpr size_t kAlignment = 64;

  // Every place begins at a multiple of `unit`, a power of two, and no two share one.
  explicit SpanAllocator(size_t size, size_t unit = kAlignment) : size_(size), unit_(unit) {
    if (size >= unit) free_.emplace(0, size / unit * unit);
  }

  static constexpr size_t rounded(size_t size, size_t unit = kAlignment) noexcept {
    return size == 0 ? unit : (size + unit - 1) & ~(unit - 1);
  }

  std::optional<size_t> allocate(size_t size) {
    if (size > size_) return std::nullopt;
    const size_t wanted = rounded(size, unit_);
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->second < wanted) continue;
      const size_t offset = it->first;
      const size_t rest = it->second - wanted;
      free_.erase(it);
      if (rest != 0) free_.emplace(offset + wanted, rest);
      used_ += wanted;
      return offset;
    }
    return std::nullopt;
  }

  // `size` as it was allocated.
  void release(size_t offset, size_t size) {
    size_t length = rounded(size, unit_);
    used_ -= length;
    auto next = free_.lower_bound(offset);
    if (next != free_.end() && next->first == offset + length) {
      length += next->second;
      next = free_.erase(next);
    }
    if (next != free_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == offset) {
        before->second += length;
        return;
      }
    }
    free_.emplace(offset, length);
  }

  bool empty() const noexcept { return used_ == 0; }
  size_t size() const noexcept { return size_; }

 private:
  const size_t size_;
  const size_t unit_;
  size_t used_ = 0;
  std::map<size_t, size_t> free_;  // offset -> length; neighbours are joined
};

}  // namespace genie::session
