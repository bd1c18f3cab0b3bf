// Buffer: the one owner of a span of memory on the datapath.
//
// Purpose: pointer, length, memory key and releaser in one move-only value. Posting a buffer moves it into the
//   transport; exactly one completion moves it out again. Views (std::span) never own.
// Thread-safety: a Buffer belongs to one thread at a time; moving it hands it over.
// Ownership: the releaser runs once, when the last owner lets go. It must not throw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace genie::datapath {

enum class MemoryKind : uint8_t { kHost, kCuda };

// A local registration. The generation tells a stale key from a reused slot.
struct MemoryKey {
  uint32_t index = UINT32_MAX;
  uint32_t generation = 0;
  bool valid() const noexcept { return index != UINT32_MAX; }
  friend bool operator==(MemoryKey, MemoryKey) = default;
};

class Buffer {
 public:
  // Called once with (context, data, size) when the buffer is dropped.
  using Releaser = void (*)(void* context, std::byte* data, size_t size) noexcept;

  Buffer() noexcept = default;
  Buffer(std::byte* data, size_t size, MemoryKey key, Releaser releaser, void* context) noexcept
      : data_(data), size_(size), key_(key), releaser_(releaser), context_(context) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer taken(std::move(other));
    swap(taken);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (releaser_ != nullptr) releaser_(context_, data_, size_);
  }

  // Memory that somebody else keeps alive until the completion came back.
  static Buffer borrow(std::span<std::byte> bytes, MemoryKey key = {}) noexcept {
    return Buffer(bytes.data(), bytes.size(), key, nullptr, nullptr);
  }

  std::byte* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }
  MemoryKey key() const noexcept { return key_; }
  std::span<std::byte> bytes() const noexcept { return {data_, size_}; }
  explicit operator bool() const noexcept { return data_ != nullptr; }

  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(key_, other.key_);
    std::swap(releaser_, other.releaser_);
    std::swap(context_, other.context_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  MemoryKey key_;
  Releaser releaser_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace genie::datapath
