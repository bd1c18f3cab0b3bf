// Regions and windows of a RemoteCore: where uploads and results lie.
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
constexpr size_t kMaxUploadWindowBytes = size_t{64} << 20;   // of all; beyond, small uploads get regions too
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

Result<std::unique_ptr<Upload>> RemoteCore::begin_upload(size_t size) {
  if (ended_.load(std::memory_order_acquire)) return failure();
  if (size < kOwnRegionBytes) {
    if (const std::optional<UploadPlace> place = place_in_window(size)) {
      return std::unique_ptr<Upload>(std::make_unique<RemoteUpload>(shared_from_this(), *place));
    }
    size_t wanted = 0;
    {
      const std::lock_guard lock(memory_mutex_);
      if (upload_window_bytes_ < kMaxUploadWindowBytes)
        wanted = std::min(grown(upload_window_bytes_, size), kMaxGrowthBytes / 4);
    }
    if (wanted != 0) {
      Result<OwnRegion> region = request_region(wanted, true);
      GENIE_TRY(region.status());
      UploadPlace place;
      {
        const std::lock_guard lock(memory_mutex_);
        upload_window_bytes_ += wanted;
        upload_windows_.push_back(
            std::make_unique<UploadWindow>(region->region, region->import, SpanAllocator(region->import.size)));
        UploadWindow* const window = upload_windows_.back().get();
        place = {.window = window, .offset = *window->places.allocate(size), .size = size};
      }
      return std::unique_ptr<Upload>(std::make_unique<RemoteUpload>(shared_from_this(), place));
    }
  }
  Result<OwnRegion> region = request_region(std::max<size_t>(size, 1), false);
  GENIE_TRY(region.status());
  return std::unique_ptr<Upload>(std::make_unique<RemoteUpload>(shared_from_this(), *region, size));
}

std::optional<UploadPlace> RemoteCore::place_in_window(size_t size) {
  const std::lock_guard lock(memory_mutex_);
  for (const auto& window : upload_windows_) {
    if (const std::optional<size_t> offset = window->places.allocate(size)) {
      return UploadPlace{.window = window.get(), .offset = *offset, .size = size};
    }
  }
  return std::nullopt;
}

void RemoteCore::drop_own_region(const OwnRegion& region) noexcept {
  const Guard guard(*this);
  (void)transport_->drop_import(region.import);
  region_releases_.push_back(region.region);
}

void RemoteCore::release_upload(const UploadPlace& place) noexcept {
  const std::lock_guard lock(memory_mutex_);
  place.window->places.release(place.offset, place.size);
}

Status RemoteCore::take_uploads_locked(Submission& submission, RemoteTicket& ticket, wire::SubmissionMessage& message) {
  for (const UploadRequest& request : submission.uploads) {
    const auto* const upload = dynamic_cast<const RemoteUpload*>(request.memory.get());
    if (upload == nullptr || upload->core_.get() != this) {
      return {Errc::kInvalidArgument, "the memory of an upload was not made by this link"};
    }
  }
  for (UploadRequest& request : submission.uploads) {
    auto& upload = static_cast<RemoteUpload&>(*request.memory);
    wire::UploadEntry& entry = message.uploads.emplace_back();
    entry.storage = request.storage;
    entry.size = upload.bytes_.size();
    upload.taken_ = true;
    if (upload.place_.window != nullptr) {
      entry.region = upload.place_.window->region;
      entry.offset = upload.place_.offset;
      ticket.uploads_.push_back(upload.place_);
    } else {
      // From here on only the node has it: what it takes over must not be writable by anybody else.
      entry.region = upload.region_.region;
      entry.whole = true;
      (void)transport_->drop_import(upload.region_.import);
    }
    add(uploads_, 1);
    add(upload_bytes_, entry.size);
  }
  return {};
}

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
