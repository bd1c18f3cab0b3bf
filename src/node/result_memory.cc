#include "src/node/result_memory.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "datapath/base/clock.h"
#include "datapath/memory/pages.h"
#include "datapath/memory/populate.h"

namespace genie::node {
namespace {

constexpr size_t kFirstRegionBytes = size_t{256} << 10;
constexpr size_t kMaxGrowthBytes = size_t{64} << 20;  // a region grows no larger by itself
// A large region that nothing has used for this long goes.
constexpr size_t kLargeRegionBytes = size_t{4} << 20;
constexpr uint64_t kIdleRegionNs = 2'000'000'000;
// Smaller results become present by page faults.
constexpr size_t kPopulateFromBytes = size_t{1} << 20;

}  // namespace

ResultSpan::~ResultSpan() { memory_->release(region_, offset_, bytes_.size()); }

Status ResultSpan::make_present() const noexcept { return memory_->make_present(region_, offset_, bytes_.size()); }

std::shared_ptr<ResultSpan> ResultMemory::reserve(size_t size) {
  const std::lock_guard lock(mutex_);
  for (const auto& region : regions_) {
    if (const std::optional<size_t> offset = region->places.allocate(size)) {
      return std::make_shared<ResultSpan>(shared_from_this(), region->number, *offset,
                                          region->memory.subspan(*offset, size));
    }
  }
  return nullptr;
}

std::optional<ResultMemory::Place> ResultMemory::find(const std::byte* data, size_t size) const {
  const std::lock_guard lock(mutex_);
  for (const auto& region : regions_) {
    const auto offset = static_cast<size_t>(data - region->memory.data());  // huge when it lies before
    if (offset < region->memory.size() && size <= region->memory.size() - offset) {
      return Place{.region = region->number, .offset = offset, .passing = region->passing};
    }
  }
  return std::nullopt;
}

ResultMemory::Wish ResultMemory::wish(size_t size) const {
  const size_t exact = datapath::round_up(size, datapath::page_bytes());
  // Only what is used becomes memory, so a region for large results may have room for huge pages and for the next ones.
  const size_t roomy = size < kPopulateFromBytes
                           ? exact
                           : std::max(datapath::round_up(size, datapath::kHugePageBytes), kLargeRegionBytes);
  const std::lock_guard lock(mutex_);
  // Doubles what is there, so that a session settles on few regions.
  const size_t grown = std::clamp<size_t>(std::bit_ceil(bytes_ + 1), kFirstRegionBytes, kMaxGrowthBytes);
  if (bytes_ + std::max(grown, roomy) <= limit_bytes_) return {.bytes = std::max(grown, roomy)};
  return {.bytes = exact, .passing = bytes_ + exact > limit_bytes_};
}

void ResultMemory::add(uint32_t number, std::span<std::byte> memory, bool passing, std::shared_ptr<void> owner) {
  const std::lock_guard lock(mutex_);
  if (!passing) bytes_ += memory.size();
  regions_.push_back(
      std::make_unique<Region>(Region{.number = number,
                                      .memory = memory,
                                      .passing = passing,
                                      .owner = std::move(owner),
                                      .places = session::SpanAllocator(memory.size(), datapath::page_bytes()),
                                      .empty_since_ns = now_ns()}));
}

std::vector<uint32_t> ResultMemory::take_idle(uint64_t now_ns) {
  std::vector<uint32_t> taken;
  const std::lock_guard lock(mutex_);
  std::erase_if(regions_, [&](const std::unique_ptr<Region>& region) {
    if (!region->places.empty()) return false;
    const bool idle = region->memory.size() >= kLargeRegionBytes && now_ns > region->empty_since_ns + kIdleRegionNs;
    if (!region->passing && !idle) return false;
    if (!region->passing) bytes_ -= region->memory.size();
    taken.push_back(region->number);
    return true;
  });
  return taken;
}

ResultMemory::Bytes ResultMemory::region_bytes() const {
  const std::lock_guard lock(mutex_);
  Bytes bytes{.kept = bytes_};
  for (const auto& region : regions_) {
    if (region->passing) bytes.passing += region->memory.size();
  }
  return bytes;
}

ResultMemory::Region* ResultMemory::find_locked(uint32_t number) noexcept {
  const auto found = std::ranges::find_if(regions_, [&](const auto& region) { return region->number == number; });
  return found == regions_.end() ? nullptr : found->get();
}

void ResultMemory::release(uint32_t number, uint64_t offset, size_t size) noexcept {
  const std::lock_guard lock(mutex_);
  Region* const region = find_locked(number);  // there as long as a span of it is
  region->places.release(offset, size);
  if (region->places.empty()) region->empty_since_ns = now_ns();
}

// First fit fills a region from its beginning, so what has to be made present is what lies beyond all that was. Several
// threads may make the same bytes present: that keeps what they hold.
Status ResultMemory::make_present(uint32_t number, uint64_t offset, size_t size) noexcept {
  if (size < kPopulateFromBytes) return {};
  std::span<std::byte> missing;
  size_t until = 0;
  {
    const std::lock_guard lock(mutex_);
    const Region* const region = find_locked(number);
    if (offset + size <= region->present) return {};
    until = std::min(datapath::round_up(offset + size, datapath::kHugePageBytes), region->memory.size());
    missing = region->memory.subspan(region->present, until - region->present);
  }
  GENIE_TRY(datapath::populate_shared(missing));
  const std::lock_guard lock(mutex_);
  Region* const region = find_locked(number);
  region->present = std::max(region->present, until);
  return {};
}

}  // namespace genie::node
