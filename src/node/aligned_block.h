// Private host memory for one storage or one result.
//
// Ownership: the Buffer owns the block and frees it when dropped. Thread-safety: any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "datapath/memory/buffer.h"
#include "datapath/memory/populate.h"
#include "genie/status.h"

namespace genie::node {

inline constexpr size_t kBlockAlignment = 64;  // what libtorch's own CPU allocator promises to its kernels

// Not zeroed: whoever asks writes every byte.
inline Result<datapath::Buffer> make_aligned_block(size_t size) {
  if (size > SIZE_MAX - kBlockAlignment) return Status(Errc::kOutOfMemory, "no block can have that many bytes");
  if (size >= datapath::kMappedBlockBytes) return datapath::map_block(size);
  const size_t rounded = size == 0 ? kBlockAlignment : (size + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
  auto* data = static_cast<std::byte*>(std::aligned_alloc(kBlockAlignment, rounded));
  if (data == nullptr) {
    return Status(Errc::kOutOfMemory,
                  "cannot allocate " + std::to_string(size) + " bytes of host memory: free tensors first");
  }
  return datapath::Buffer(
      data, size, {}, [](void*, std::byte* block, size_t) noexcept { std::free(block); }, nullptr);
}

}  // namespace genie::node
