// What a RemoteKey holds, for transports that keep their regions in tables.
//
// Purpose: index and generation find a region in its owner's table, size bounds it, the nonce cannot be guessed.
// Thread-safety: any thread. Ownership: values.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "datapath/transport.h"

namespace genie::datapath {

struct KeyFields {
  uint32_t index = 0;
  uint32_t generation = 0;
  uint64_t size = 0;
  std::array<std::byte, 16> nonce{};
};
static_assert(sizeof(KeyFields) == sizeof(RemoteKey));

inline RemoteKey pack_key(const KeyFields& fields) noexcept { return std::bit_cast<RemoteKey>(fields); }
inline KeyFields unpack_key(const RemoteKey& key) noexcept { return std::bit_cast<KeyFields>(key); }

// Takes the same time whatever the bytes are.
inline bool same_nonce(const std::array<std::byte, 16>& a, const std::array<std::byte, 16>& b) noexcept {
  std::byte difference{0};
  for (size_t i = 0; i < a.size(); ++i) difference |= a[i] ^ b[i];
  return difference == std::byte{0};
}

// From the kernel's generator.
void fill_random(std::span<std::byte> bytes) noexcept;

}  // namespace genie::datapath
