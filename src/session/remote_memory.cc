// Windows of a RemoteCore: where results lie.
#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "src/node/aligned_block.h"
#include "src/session/remote_core.h"

namespace genie::session {
namespace {

constexpr size_t kFirstWindowBytes = size_t{256} << 10;
constexpr size_t kMaxGrowthBytes = size_t{64} << 20;         // a window grows no larger by itself
constexpr size_t kMaxDownloadWindowBytes = size_t{1} << 30;  // of all; beyond, results are copied out
// A large window that nothing has used for this long is given back.
constexpr size_t kLargeWindowBytes = size_t{4} << 20;
constexpr uint64_t kIdleWindowNs = 2'000'000'000;

class CopiedFetched final : public Fetched {
 public:
  explicit CopiedFetched(datapath::Buffer block) : block_(std::move(block)) {}
  std::span<std::byte> bytes() override { return block_.bytes(); }

 private:
  datapath::Buffer block_;
};

// Doubles what is there, so that a session settles on few windows.
size_t grown(size_t total, size_t needed) noexcept {
  const size_t by_growth = std::clamp(std::bit_ceil(total + 1), kFirstWindowBytes, kMaxGrowthBytes);
  return std::max(by_growth, SpanAllocator::rounded(needed));
}

}  // namespace

Result<DownloadPlace> RemoteCore::place_result_locked(size_t size) {
  if (size <= wire::kMaxInlineBytes) return DownloadPlace{.window = nullptr, .offset = 0, .size = size};
  bool overflow = false;
  size_t wanted = 0;
  {
    const std::lock_guard lock(memory_mutex_);
    for (const auto& window : download_windows_) {
      if (window->overflow) continue;
      if (const std::optional<size_t> offset = window->places.allocate(size)) {
        return DownloadPlace{.window = window.get(), .offset = *offset, .size = size};
      }
    }
    wanted = grown(download_window_bytes_, size);
    if (download_window_bytes_ + wanted > kMaxDownloadWindowBytes) wanted = SpanAllocator::rounded(size);
    overflow = download_window_bytes_ + wanted > kMaxDownloadWindowBytes;
  }
  const Result<DownloadWindow*> window = add_download_window_locked(wanted, overflow);
  GENIE_TRY(window.status());
  const std::lock_guard lock(memory_mutex_);
  return DownloadPlace{.window = *window, .offset = *(*window)->places.allocate(size), .size = size};
}

Result<DownloadWindow*> RemoteCore::add_download_window_locked(size_t size, bool overflow) {
  Result<datapath::Region> region =
      transport_->allocate(endpoint_, size, Deadline::after_ms(options_.progress_timeout_ms));
  if (!region) return Status(region.code(), place_ + ": no memory for a result: " + region.status().to_string());
  auto window = std::make_unique<DownloadWindow>(next_window_++, *region, SpanAllocator(size), overflow, uint64_t{0});
  window_offers_.push_back({.window = window->number, .size = size, .key = region->remote.bytes});
  const std::lock_guard lock(memory_mutex_);
  if (!overflow) download_window_bytes_ += size;
  download_windows_.push_back(std::move(window));
  return download_windows_.back().get();
}

void RemoteCore::drop_idle_windows_locked(wire::SubmissionMessage& message) {
  const std::lock_guard lock(memory_mutex_);
  const uint64_t now = now_ns();
  std::erase_if(download_windows_, [&](const std::unique_ptr<DownloadWindow>& window) {
    if (!window->places.empty()) return false;
    const bool idle = window->region.size >= kLargeWindowBytes && now - window->empty_since_ns > kIdleWindowNs;
    if (!window->overflow && !idle) return false;
    if (!transport_->release(window->region.key).ok()) return false;
    message.window_drops.push_back(window->number);
    if (!window->overflow) download_window_bytes_ -= window->region.size;
    return true;
  });
}

void RemoteCore::release_result(const DownloadPlace& place) noexcept {
  if (place.window == nullptr) return;
  const std::lock_guard lock(memory_mutex_);
  place.window->places.release(place.offset, place.size);
  if (place.window->places.empty()) place.window->empty_since_ns = now_ns();
}

Result<std::unique_ptr<Fetched>> RemoteCore::make_fetched(const DownloadPlace& place,
                                                          std::span<const std::byte> inline_bytes) {
  if (place.window != nullptr && !place.window->overflow) {
    return std::unique_ptr<Fetched>(std::make_unique<RemoteFetched>(shared_from_this(), place));
  }
  Result<datapath::Buffer> block = node::make_aligned_block(place.size);
  GENIE_TRY(block.status());
  if (place.window != nullptr) {
    std::memcpy(block->data(), place.window->region.data + place.offset, place.size);
    // The second pass over a result that found the windows full.
    add(fetch_copied_bytes_, place.size);
    release_result(place);
  } else if (place.size != 0) {
    std::memcpy(block->data(), inline_bytes.data(), place.size);
  }
  return std::unique_ptr<Fetched>(std::make_unique<CopiedFetched>(std::move(*block)));
}

}  // namespace genie::session
