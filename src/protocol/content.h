// Content: what a client and a node call the same bytes by.
//
// Purpose: a *sketch* is read from a few places of a blob and says only that a look is worth it; the *hash* is read from all of
//   it (XXH3-128), and blobs with one hash and one size are the same to both ends. It withstands accidents, not an attacker, so it
//   identifies blobs of one identity alone.
// Thread-safety: functions: any thread; a ContentHasher belongs to one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace genie::wire {

// Blobs from here on are known by their content: a smaller one is sent in less time than asking takes.
inline constexpr size_t kMinContentBytes = size_t{1} << 20;

struct ContentHash {
  uint64_t low = 0;
  uint64_t high = 0;
  friend bool operator==(const ContentHash&, const ContentHash&) = default;
};

// Of at least kMinContentBytes: the places follow from the size alone.
uint64_t sketch_of(std::span<const std::byte> bytes) noexcept;

// A hash that is made piece by piece: the pieces' sizes do not matter.
class ContentHasher {
 public:
  // So many bytes at a time keep the cost of looking up in between small.
  static constexpr size_t kPieceBytes = size_t{256} << 10;

  ContentHasher();
  ContentHasher(const ContentHasher&) = delete;
  ContentHasher& operator=(const ContentHasher&) = delete;

  void begin() noexcept;
  void add(std::span<const std::byte> piece) noexcept;
  ContentHash hash() const noexcept;

 private:
  const std::unique_ptr<void, void (*)(void*)> state_;  // XXH3_state_t
};

ContentHash hash_of(std::span<const std::byte> bytes) noexcept;

}  // namespace genie::wire
