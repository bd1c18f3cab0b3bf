// stream_copy: memcpy that leaves the caches alone for large copies.
//
// Purpose: bytes on their way to another process are not read again here; writing them past the caches saves the
//   read-for-ownership of each line.
// Thread-safety: as memcpy. The stores are globally visible before any later store of the caller.
#pragma once

#include <cstddef>

namespace genie::datapath {

// From this size of the whole transfer on, streaming was measured to be faster than memcpy: both buffers no longer stay
// in the cache.
inline constexpr size_t kStreamingBytes = size_t{8} << 20;

void stream_copy(std::byte* to, const std::byte* from, size_t size) noexcept;

}  // namespace genie::datapath
