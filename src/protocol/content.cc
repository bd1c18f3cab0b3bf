#include "src/protocol/content.h"

// Compiled in: sanitizers see what it reads.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <array>
#include <cstring>
#include <new>

namespace genie::wire {
namespace {

constexpr size_t kSamples = 32;
constexpr size_t kSampleBytes = 128;
constexpr size_t kLineBytes = 64;

}  // namespace

uint64_t sketch_of(std::span<const std::byte> bytes) noexcept {
  // Evenly spread, from the first bytes to the last.
  std::array<std::byte, kSamples * kSampleBytes> samples;
  const size_t last = bytes.size() - kSampleBytes;
  for (size_t i = 0; i < kSamples; ++i) {
    const size_t at = i + 1 == kSamples ? last : last / (kSamples - 1) * i / kLineBytes * kLineBytes;
    std::memcpy(samples.data() + i * kSampleBytes, bytes.data() + at, kSampleBytes);
  }
  return XXH3_64bits_withSeed(samples.data(), samples.size(), bytes.size());
}

ContentHasher::ContentHasher()
    : state_(XXH3_createState(), [](void* state) { XXH3_freeState(static_cast<XXH3_state_t*>(state)); }) {
  if (state_ == nullptr) throw std::bad_alloc();
  begin();
}

void ContentHasher::begin() noexcept { XXH3_128bits_reset(static_cast<XXH3_state_t*>(state_.get())); }

void ContentHasher::add(std::span<const std::byte> piece) noexcept {
  XXH3_128bits_update(static_cast<XXH3_state_t*>(state_.get()), piece.data(), piece.size());
}

ContentHash ContentHasher::hash() const noexcept {
  const XXH128_hash_t hash = XXH3_128bits_digest(static_cast<const XXH3_state_t*>(state_.get()));
  return {.low = hash.low64, .high = hash.high64};
}

ContentHash hash_of(std::span<const std::byte> bytes) noexcept {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {.low = hash.low64, .high = hash.high64};
}

}  // namespace genie::wire
