// Words: a growing array of numbers, written by capture on every call.
//
// Purpose: what a std::vector does out of line when it appends a range is here a few stores; room is kept when it is cleared.
// Thread-safety: none.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

namespace genie::frontend {

template <typename T>
class Words {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Words() noexcept = default;
  Words(const Words& other) { append(other.data(), other.size()); }
  Words(Words&& other) noexcept { swap(other); }
  Words& operator=(Words other) noexcept {
    swap(other);
    return *this;
  }
  ~Words() = default;

  T* data() noexcept { return memory_.get(); }
  const T* data() const noexcept { return memory_.get(); }
  size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  T* begin() noexcept { return data(); }
  T* end() noexcept { return data() + size_; }
  const T* begin() const noexcept { return data(); }
  const T* end() const noexcept { return data() + size_; }
  T& operator[](size_t at) noexcept { return memory_[at]; }
  const T& operator[](size_t at) const noexcept { return memory_[at]; }
  operator std::span<const T>() const noexcept { return {data(), size_}; }

  void clear() noexcept { size_ = 0; }
  void push_back(T value) {
    if (size_ == capacity_) [[unlikely]]
      grow(1);
    memory_[size_++] = value;
  }
  // `values` are not of this array.
  void append(const T* values, size_t count) {
    T* const to = extend(count);
    if (count > kFew) {
      std::copy(values, values + count, to);
      return;
    }
    for (size_t i = 0; i < count; ++i) {
      to[i] = values[i];
      asm volatile("" ::: "memory");  // or else the compiler calls memcpy, which takes longer
    }
  }
  // So many more, to be written by the caller.
  T* extend(size_t count) {
    if (capacity_ - size_ < count) [[unlikely]]
      grow(count);
    T* const to = data() + size_;
    size_ += count;
    return to;
  }

  friend bool operator==(const Words& left, const Words& right) noexcept {
    return std::equal(left.begin(), left.end(), right.begin(), right.end());
  }

 private:
  static constexpr size_t kLeast = 64;
  static constexpr size_t kFew = 16;

  [[gnu::noinline]] void grow(size_t more) {
    const size_t capacity = std::max({kLeast, size_ + more, 2 * capacity_});
    auto grown = std::make_unique_for_overwrite<T[]>(capacity);
    std::copy(begin(), end(), grown.get());
    memory_ = std::move(grown);
    capacity_ = capacity;
  }
  void swap(Words& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

  std::unique_ptr<T[]> memory_;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace genie::frontend
