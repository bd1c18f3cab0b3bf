// Where the uploads of a RemoteCore lie: windows for small ones, regions that are handed over for the rest.
//
// An upload's bytes are written once, by its maker, into memory that is ready for the node. What happens next:
//   - in a window, which this process goes on writing: the node copies them out, once;
//   - in a region: when a submission takes along all of its uploads, the region goes too. From then on only the node has
//     it, and the bytes are the storages, without a copy. A region costs system calls and fresh pages, so it pays from
//     kRegionUploadBytes on, or where much waits to be submitted together.
// Invariant: a region departs only with its last writer, and its owner's thread writes and grows it only while it holds an
//   upload in it that has not been submitted. Hence nobody touches a region that has departed.
#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "datapath/memory/populate.h"
#include "src/session/remote_core.h"

namespace genie::session {
namespace {

constexpr size_t kFirstWindowBytes = size_t{256} << 10;
constexpr size_t kMaxWindowBytes = size_t{16} << 20;  // of all
// The address range of a region; only what is used becomes memory.
constexpr size_t kRegionBytes = size_t{64} << 20;
// Of a region that is made present before anybody asks for it.
constexpr size_t kAheadBytes = size_t{4} << 20;

// `size` is bounded by the session's quota.
size_t region_size_for(size_t size) noexcept {
  return std::max(kRegionBytes, datapath::round_up(size, datapath::kHugePageBytes));
}

}  // namespace

Result<std::unique_ptr<Upload>> RemoteCore::begin_upload(size_t size) {
  if (ended_.load(std::memory_order_acquire)) return failure();
  if (size > memory_bytes_) {
    return Status(Errc::kQuotaExceeded, place_ + ": an upload of " + std::to_string(size) +
                                            " bytes does not fit into the session's memory quota of " +
                                            std::to_string(memory_bytes_) +
                                            " bytes: upload less, or raise the node's --memory-quota");
  }
  const auto in_window = [&](const UploadPlace& place) {
    return std::unique_ptr<Upload>(std::make_unique<RemoteUpload>(shared_from_this(), place));
  };
  // Nobody copies out of a window across a network; what is small travels with the word that hands it over.
  if (size >= kRegionUploadBytes || !maps_) return upload_in_region(size);
  if (const std::optional<UploadPlace> place = place_in_window(size)) return in_window(*place);
  bool may_grow = false;
  {
    const std::lock_guard lock(memory_mutex_);
    may_grow = upload_window_bytes_ < kMaxWindowBytes && waiting_window_bytes_ + size <= kRegionUploadBytes;
  }
  if (!may_grow) return upload_in_region(size);
  const Result<UploadPlace> place = place_in_new_window(size);
  GENIE_TRY(place.status());
  return in_window(*place);
}

// -- Windows -----------------------------------------------------------------------------------------------------------------

std::optional<UploadPlace> RemoteCore::place_in_window(size_t size) {
  const std::lock_guard lock(memory_mutex_);
  if (waiting_window_bytes_ + size > kRegionUploadBytes) return std::nullopt;
  for (const auto& window : upload_windows_) {
    if (const std::optional<size_t> offset = window->places.allocate(size)) {
      waiting_window_bytes_ += size;
      return UploadPlace{.window = window.get(), .offset = *offset, .size = size};
    }
  }
  return std::nullopt;
}

// Doubles what is there, so that a session settles on few windows.
Result<UploadPlace> RemoteCore::place_in_new_window(size_t size) {
  const Guard guard(*this);
  if (!failure_.ok()) return failure_;
  const size_t wanted = std::clamp(std::bit_ceil(upload_window_bytes_ + 1), kFirstWindowBytes, kMaxWindowBytes / 2);
  const Result<datapath::Region> region =
      transport_->allocate(endpoint_, wanted, Deadline::after_ms(options_.progress_timeout_ms));
  if (!region) return Status(region.code(), place_ + ": no memory for uploads: " + region.status().to_string());
  auto window = std::make_unique<UploadWindow>(next_window_++, *region, SpanAllocator(wanted));
  window_offers_.push_back({.window = window->number, .size = wanted, .key = region->remote.bytes});
  const UploadPlace place{.window = window.get(), .offset = *window->places.allocate(size), .size = size};
  const std::lock_guard lock(memory_mutex_);
  upload_window_bytes_ += wanted;
  waiting_window_bytes_ += size;
  upload_windows_.push_back(std::move(window));
  return place;
}

void RemoteCore::drop_upload(const UploadPlace& place) noexcept {
  const std::lock_guard lock(memory_mutex_);
  waiting_window_bytes_ -= place.size;
  place.window->places.release(place.offset, place.size);
}

void RemoteCore::release_upload(const UploadPlace& place) noexcept {
  const std::lock_guard lock(memory_mutex_);
  place.window->places.release(place.offset, place.size);
}

// -- Regions -----------------------------------------------------------------------------------------------------------------

Result<std::unique_ptr<Upload>> RemoteCore::upload_in_region(size_t size) {
  OutgoingRegion* region = nullptr;
  size_t offset = 0;
  const auto enter = [&] {
    offset = region->used;
    region->used += SpanAllocator::rounded(size);
    region->owner = std::this_thread::get_id();
    ++region->writers;
  };
  {
    const std::lock_guard lock(memory_mutex_);
    if ((region = find_region(size)) != nullptr) enter();
  }
  if (region == nullptr) {
    const Guard guard(*this);
    if (!failure_.ok()) return failure_;
    Result<std::unique_ptr<OutgoingRegion>> made = make_region_locked(size);
    GENIE_TRY(made.status());
    region = made->get();
    enter();
    const std::lock_guard lock(memory_mutex_);
    outgoing_.push_back(std::move(*made));
  }
  auto upload = std::make_unique<RemoteUpload>(shared_from_this(), region, offset, size);
  GENIE_TRY(make_present(*region, offset + size));
  return std::unique_ptr<Upload>(std::move(upload));
}

// One that this thread is filling, or one that waits to be used.
OutgoingRegion* RemoteCore::find_region(size_t size) {
  OutgoingRegion* idle = nullptr;
  for (const auto& region : outgoing_) {
    if (SpanAllocator::rounded(size) > region->region.size - region->used) continue;
    if (region->owner == std::this_thread::get_id()) return region.get();
    if (region->owner == std::thread::id()) idle = region.get();
  }
  return idle;
}

Result<std::unique_ptr<OutgoingRegion>> RemoteCore::make_region_locked(size_t size) {
  auto made = std::make_unique<OutgoingRegion>();
  Result<datapath::Region> region = transport_->prepare(endpoint_, region_size_for(size));
  if (!region) {
    return Status(region.code(),
                  "no memory for an upload of " + std::to_string(size) + " bytes: " + region.status().to_string());
  }
  made->region = *region;
  return made;
}

// Huge pages, a few at a time: an unused tail costs nothing.
Status RemoteCore::make_present(OutgoingRegion& region, size_t end) {
  if (end <= region.present) return {};
  const bool huge = datapath::shared_page_method() != datapath::PageMethod::kPlain;
  const size_t unit = huge ? datapath::kHugePageBytes : datapath::page_bytes();
  const size_t wanted = std::min(datapath::round_up(end, unit), region.region.size);
  const Status present = datapath::populate_shared({region.region.data + region.present, wanted - region.present});
  if (!present.ok()) {
    return {present.code(), "no memory for an upload: " + std::to_string(wanted - region.present) +
                                " bytes of shared memory cannot be made present"};
  }
  region.present = wanted;
  return {};
}

// An upload was dropped without being submitted.
void RemoteCore::leave_region(OutgoingRegion& region) noexcept {
  const std::lock_guard lock(memory_mutex_);
  if (--region.writers != 0) return;
  region.used = 0;
  region.leaving = 0;
  region.owner = {};
}

void RemoteCore::prepare_ahead(size_t size) {
  if (size > kAheadBytes) return;
  const auto is_idle = [](const std::unique_ptr<OutgoingRegion>& region) { return region->owner == std::thread::id(); };
  std::unique_ptr<OutgoingRegion> ahead;
  {
    const Guard guard(*this);
    const std::lock_guard lock(memory_mutex_);
    if (!failure_.ok() || std::ranges::any_of(outgoing_, is_idle)) return;
    Result<std::unique_ptr<OutgoingRegion>> made = make_region_locked(size);
    if (!made) return;  // who needs it will say so
    ahead = std::move(*made);
  }
  if (!make_present(*ahead, size).ok()) ahead->present = 0;
  const std::lock_guard lock(memory_mutex_);
  outgoing_.push_back(std::move(ahead));
}

// One waits for the next upload; others, and one that is large, give their memory back.
void RemoteCore::drop_idle_regions_locked() {
  const std::lock_guard lock(memory_mutex_);
  bool kept = false;
  std::erase_if(outgoing_, [&](const std::unique_ptr<OutgoingRegion>& region) {
    if (region->owner != std::thread::id()) return false;
    if (!kept && region->present <= kAheadBytes && region->region.size == kRegionBytes) {
      kept = true;
      return false;
    }
    return transport_->release(region->region.key).ok();
  });
}

// -- Submitting --------------------------------------------------------------------------------------------------------------

// Regions that lose their last writer with this submission leave the table: from here on nobody puts uploads into them.
RemoteCore::Departing RemoteCore::take_departing(const Submission& submission) {
  Departing departing;
  const std::lock_guard lock(memory_mutex_);
  for (const UploadRequest& request : submission.uploads) {
    const auto& upload = static_cast<const RemoteUpload&>(*request.memory);
    if (upload.region_ != nullptr) ++upload.region_->leaving;
  }
  for (auto& region : outgoing_) {
    if (region->leaving == 0 || region->leaving != region->writers) continue;
    region->departs = true;
    departing.push_back(std::move(region));
  }
  std::erase(outgoing_, nullptr);
  return departing;
}

// Uploads whose region others still fill, of another thread's stream or of none yet: the region cannot depart with them, so
// they move to one that can. Null when there are none.
Result<std::unique_ptr<OutgoingRegion>> RemoteCore::copy_remaining_locked(const Submission& submission) {
  const auto remains = [](const RemoteUpload& upload) { return upload.region_ != nullptr && !upload.region_->departs; };
  size_t total = 0;
  for (const UploadRequest& request : submission.uploads) {
    const auto& upload = static_cast<const RemoteUpload&>(*request.memory);
    if (remains(upload)) total += SpanAllocator::rounded(upload.bytes_.size());
  }
  if (total == 0) return std::unique_ptr<OutgoingRegion>();
  Result<std::unique_ptr<OutgoingRegion>> made = make_region_locked(total);
  GENIE_TRY(made.status());
  OutgoingRegion& copies = **made;
  if (Status present = make_present(copies, total); !present.ok()) {
    (void)transport_->release(copies.region.key);
    return present;
  }
  copies.departs = true;
  for (const UploadRequest& request : submission.uploads) {
    auto& upload = static_cast<RemoteUpload&>(*request.memory);
    if (!remains(upload)) continue;
    std::memcpy(copies.region.data + copies.used, upload.bytes_.data(), upload.bytes_.size());
    add(upload_copied_bytes_, upload.bytes_.size());
    leave_region(*std::exchange(upload.region_, &copies));
    upload.offset_ = copies.used;
    copies.used += SpanAllocator::rounded(upload.bytes_.size());
  }
  const std::lock_guard lock(memory_mutex_);
  for (const auto& region : outgoing_) region->leaving = 0;
  return made;
}

Status RemoteCore::take_uploads_locked(Submission& submission, RemoteTicket& ticket, wire::SubmissionMessage& message,
                                       size_t& handed_over_bytes) {
  for (const UploadRequest& request : submission.uploads) {
    const auto* const upload = dynamic_cast<const RemoteUpload*>(request.memory.get());
    if (upload == nullptr || upload->core_.get() != this) {
      return {Errc::kInvalidArgument, "the memory of an upload was not made by this link"};
    }
  }
  drop_idle_regions_locked();
  if (submission.uploads.empty()) return {};
  Departing departing = take_departing(submission);
  Result<std::unique_ptr<OutgoingRegion>> copies =
      departing.size() < wire::kMaxRegions
          ? copy_remaining_locked(submission)
          : Status(Errc::kOutOfRange, "too many large uploads in one submission: flush more often");
  if (!copies) {
    const std::lock_guard lock(memory_mutex_);
    for (auto& region : departing) outgoing_.push_back(std::move(region));
    for (auto& region : outgoing_) {
      region->leaving = 0;
      region->departs = false;
    }
    return copies.status();
  }
  if (*copies != nullptr) departing.push_back(std::move(*copies));
  for (uint32_t i = 0; i < departing.size(); ++i) departing[i]->number = i;
  for (UploadRequest& request : submission.uploads) {
    auto& upload = static_cast<RemoteUpload&>(*request.memory);
    wire::UploadEntry& entry = message.uploads.emplace_back();
    entry.storage = request.storage;
    entry.size = upload.size_;
    upload.taken_ = true;
    add(uploads_, 1);
    if (upload.blob_ != 0) {
      entry.region = wire::kKnownBlob;
      entry.offset = upload.blob_;
      add(upload_known_bytes_, entry.size);
      continue;
    }
    if (upload.region_ != nullptr) {
      entry.region = upload.region_->number;
      entry.offset = upload.offset_;
    } else {
      entry.window = upload.place_.window->number;
      entry.offset = upload.place_.offset;
      ticket.uploads_.push_back(upload.place_);
      const std::lock_guard lock(memory_mutex_);
      waiting_window_bytes_ -= entry.size;
    }
    add(upload_bytes_, entry.size);
  }
  return hand_over_locked(departing, message, handed_over_bytes);
}

Status RemoteCore::hand_over_locked(const Departing& departing, wire::SubmissionMessage& message,
                                    size_t& handed_over_bytes) {
  for (const auto& region : departing) {
    const Result<datapath::RemoteKey> key =
        transport_->hand_over(region->region.key, region->used, Deadline::after_ms(options_.progress_timeout_ms));
    if (!key) {
      // Some may be on their way: the two sides no longer agree, so the session is over.
      Status why(key.code(), place_ + ": an upload could not be handed over: " + key.status().to_string());
      end_locked(why);
      return why;
    }
    message.regions.push_back(key->bytes);
    handed_over_bytes += region->used;
    add(upload_regions_, 1);
  }
  return {};
}

}  // namespace genie::session
