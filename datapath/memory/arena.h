// Arena: one pre-faulted mapping (hugepages where there are some), cut into 64-byte aligned buffers.
//
// Purpose: network-ready memory is mapped and registered once; tensors and messages take pieces of it. Two-level
//   segregated free lists: allocate and free are O(1), neighbours are joined at once.
// Thread-safety: every function may be called from any thread; a Buffer may be dropped on any thread. One short lock.
// Ownership: each Buffer keeps the mapping alive, so buffers may outlive the Arena. All bookkeeping lies outside of the
//   mapping: a peer that can write the memory cannot harm it.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "datapath/memory/buffer.h"
#include "genie/status.h"

namespace genie::datapath {

struct ArenaOptions {
  size_t size_bytes = size_t{64} << 20;  // rounded up to 2 MiB
  bool hugepages = true;
};

class Arena {
 public:
  static constexpr size_t kAlignment = 64;

  static Result<std::unique_ptr<Arena>> make(const ArenaOptions& options);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Memory is not cleared. kInvalidArgument for 0, kOutOfMemory when no piece is large enough.
  Result<Buffer> allocate(size_t size);

  // The registration that covers the whole arena; buffers that are allocated later carry it.
  void set_key(MemoryKey key);

  std::span<std::byte> memory() const noexcept;
  bool contains(const std::byte* data, size_t size) const noexcept;
  bool hugepages() const noexcept;
  // Of live buffers, rounded up to the alignment.
  size_t bytes_in_use() const;
  // The largest size that allocate() would serve now.
  size_t largest_free() const;

 private:
  class Core;
  explicit Arena(Core* core) noexcept : core_(core) {}
  Core* core_;
};

}  // namespace genie::datapath
