// Where two arrays of numbers differ. Any thread.
//
// Most numbers of a step that repeats are those of the step before, so that equal ones are passed over sixteen at a time.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace genie {

// Of sixteen numbers: bit 2 * i is set where number i is the same.
inline uint32_t equal_sixteen(const uint64_t* left, const uint64_t* right) noexcept {
#if defined(__SSE2__)
  // Halves of 32 bits, as SSE2 compares no larger ones; each is one bit in the end.
  const auto equal_pair = [&](size_t at) {
    return _mm_cmpeq_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(left + at)),
                           _mm_loadu_si128(reinterpret_cast<const __m128i*>(right + at)));
  };
  const auto equal_eight = [&](size_t at) {
    const __m128i low = _mm_packs_epi32(equal_pair(at), equal_pair(at + 2));
    const __m128i high = _mm_packs_epi32(equal_pair(at + 4), equal_pair(at + 6));
    return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(low, high)));
  };
  const uint32_t halves = equal_eight(0) | equal_eight(8) << 16;
  return halves & halves >> 1 & 0x5555'5555U;
#else
  uint32_t equal = 0;
  for (unsigned i = 0; i < 16; ++i) equal |= static_cast<uint32_t>(left[i] == right[i]) << (2 * i);
  return equal;
#endif
}

// Calls `found` with the place of each number that is not the same, in order.
template <typename Found>
inline void for_each_difference(const uint64_t* left, const uint64_t* right, size_t count, const Found& found) {
  constexpr size_t kBlock = 16;
  size_t at = 0;
  for (; at + kBlock <= count; at += kBlock) {
    uint32_t differ = equal_sixteen(left + at, right + at) ^ 0x5555'5555U;
    for (; differ != 0; differ &= differ - 1) found(at + static_cast<size_t>(std::countr_zero(differ)) / 2);
  }
  for (; at < count; ++at) {
    if (left[at] != right[at]) found(at);
  }
}

}  // namespace genie
