// Results of a RemoteCore whose node writes them across a network: where they are to lie.
//
// Each fetch that does not fit into a completion gets a place in a window, memory of this process that the node was offered
// before, and the node writes the bytes there before it says so. The tensor lives in that place until the program lets go of
// it. A program that keeps more than kMaxKeptBytes gets further results in ordinary memory: one pass, counted.
#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "src/node/aligned_block.h"
#include "src/session/block_fetched.h"
#include "src/session/remote_core.h"

namespace genie::session {
namespace {

constexpr size_t kFirstWindowBytes = size_t{1} << 20;
constexpr size_t kMaxGrowthBytes = size_t{64} << 20;  // a window grows no larger by itself
constexpr size_t kMaxKeptBytes = size_t{1} << 30;

}  // namespace

Status RemoteCore::place_results_locked(RemoteTicket& ticket, wire::SubmissionMessage& message) {
  ticket.result_places_.resize(ticket.wanted_bytes_.size());
  for (size_t i = 0; i < ticket.wanted_bytes_.size(); ++i) {
    const uint64_t size = ticket.wanted_bytes_[i];
    if (size <= wire::kMaxInlineBytes) continue;
    const Result<UploadPlace> place = place_result_locked(size);
    if (!place) {
      release_places(ticket);
      return place.status();
    }
    ticket.result_places_[i] = *place;
    message.fetches[i].window = place->window->number;
    message.fetches[i].place = place->offset;
  }
  return {};
}

Result<UploadPlace> RemoteCore::place_result_locked(size_t size) {
  const auto take = [&]() -> UploadPlace {
    const std::lock_guard lock(memory_mutex_);
    for (const auto& window : result_windows_) {
      if (const std::optional<size_t> offset = window->places.allocate(size)) {
        placed_bytes_ += size;
        return {.window = window.get(), .offset = *offset, .size = size};
      }
    }
    return {};
  };
  if (const UploadPlace place = take(); place.window != nullptr) return place;
  // Doubles what is there, so that a session settles on few windows.
  const size_t grown = std::clamp(std::bit_ceil(result_window_bytes_ + 1), kFirstWindowBytes, kMaxGrowthBytes);
  const size_t wanted = std::max(grown, SpanAllocator::rounded(size));
  const Result<datapath::Region> region =
      transport_->allocate(endpoint_, wanted, Deadline::after_ms(options_.progress_timeout_ms));
  if (!region) {
    return Status(region.code(), place_ + ": no memory for a result of " + std::to_string(size) +
                                     " bytes: " + region.status().to_string());
  }
  auto window = std::make_unique<UploadWindow>(next_window_++, *region, SpanAllocator(wanted));
  window_offers_.push_back({.window = window->number, .size = wanted, .key = region->remote.bytes});
  {
    const std::lock_guard lock(memory_mutex_);
    result_window_bytes_ += wanted;
    result_windows_.push_back(std::move(window));
  }
  return take();
}

Result<std::unique_ptr<Fetched>> RemoteCore::make_placed_locked(UploadPlace& place) {
  bool keeps_too_much = false;
  {
    const std::lock_guard lock(memory_mutex_);
    keeps_too_much = placed_bytes_ > kMaxKeptBytes;
  }
  if (!keeps_too_much) {
    return std::unique_ptr<Fetched>(
        std::make_unique<PlacedFetched>(shared_from_this(), std::exchange(place, UploadPlace())));
  }
  Result<datapath::Buffer> block = node::make_aligned_block(place.size);
  GENIE_TRY(block.status());
  std::memcpy(block->data(), place.window->region.data + place.offset, place.size);
  add(fetch_copied_bytes_, place.size);
  release_place(std::exchange(place, UploadPlace()));
  return std::unique_ptr<Fetched>(std::make_unique<BlockFetched>(std::move(*block)));
}

// Of fetches that got nothing.
void RemoteCore::release_places(RemoteTicket& ticket) noexcept {
  for (const UploadPlace& place : ticket.result_places_) {
    if (place.window != nullptr) release_place(place);
  }
  ticket.result_places_.clear();
}

// Any thread, at any time: never blocks on the transport.
void RemoteCore::release_place(const UploadPlace& place) noexcept {
  const std::lock_guard lock(memory_mutex_);
  placed_bytes_ -= place.size;
  place.window->places.release(place.offset, place.size);
}

}  // namespace genie::session
