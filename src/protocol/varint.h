// Numbers in as few bytes as they need: seven bits a byte, the lowest first, the top bit set on all but the last. Signed
// differences alternate around zero (zigzag), as in Protocol Buffers.
//
// Thread-safety: values. Errors: a reader that met its end, or a number beyond 64 bits, is not ok() from then on and gives zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace genie::wire {

inline void put_varint(std::vector<std::byte>& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<std::byte>(value | 0x80));
  out.push_back(static_cast<std::byte>(value));
}

// From `from` to `to`, modulo 2^64.
inline void put_difference(std::vector<std::byte>& out, uint64_t from, uint64_t to) {
  const uint64_t difference = to - from;
  put_varint(out, difference << 1 ^ (0 - (difference >> 63)));
}

class VarintReader {
 public:
  explicit VarintReader(std::span<const std::byte> bytes) : rest_(bytes) {}

  uint64_t number() {
    uint64_t value = 0;
    for (unsigned shift = 0; ok_ && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<uint64_t>(rest_.front());
      rest_ = rest_.subspan(1);
      if (shift == 63 && byte > 1) break;
      value |= (byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    ok_ = false;
    return 0;
  }
  uint64_t difference_from(uint64_t from) {
    const uint64_t zigzag = number();
    return from + (zigzag >> 1 ^ (0 - (zigzag & 1)));
  }
  bool ok() const noexcept { return ok_; }
  bool at_end() const noexcept { return rest_.empty(); }
  size_t bytes_left() const noexcept { return rest_.size(); }

 private:
  std::span<const std::byte> rest_;
  bool ok_ = true;
};

}  // namespace genie::wire
