// Results of a RemoteCore: where the node put them, and how they go back.
#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "datapath/memory/pages.h"
#include "src/node/aligned_block.h"
#include "src/session/block_fetched.h"
#include "src/session/remote_core.h"

namespace genie::session {
namespace {

// Results that are gone hold the node's memory until it is told, which usually is the next submission. So much is worth a
// message of its own: a program that does nothing more gives it back too.
constexpr uint64_t kReleaseAtOnceBytes = uint64_t{1} << 20;
constexpr size_t kMaxReleases = 65536;  // in one message

}  // namespace

// The node tells of a region before the first result in it, so that it is mapped while the result is being made.
Status RemoteCore::on_result_region_locked(const wire::ResultRegion& told) {
  const auto known = result_regions_.find(told.region);
  if (told.size == 0) {
    if (known == result_regions_.end()) return {Errc::kProtocol, "took memory back that it had not lent"};
    (void)transport_->drop_import(known->second.import);
    result_regions_.erase(known);
    return {};
  }
  if (known != result_regions_.end()) return {Errc::kProtocol, "lent the same memory twice"};
  ResultRegion region;
  datapath::RemoteKey key;
  key.bytes = told.key;
  const Result<datapath::RemoteRegion> imported = transport_->import_region(endpoint_, key);
  if (!imported) {
    region.failure =
        Status(imported.code(), place_ + ": the memory of a result cannot be mapped: " + imported.status().to_string());
  } else if (imported->mapped == nullptr || imported->size < told.size) {
    return {Errc::kProtocol, "lent less memory than it said"};
  } else {
    region.import = *imported;
  }
  result_regions_.emplace(told.region, std::move(region));
  return {};
}

Result<std::unique_ptr<Fetched>> RemoteCore::make_fetched_locked(const wire::FetchedEntry& entry, uint64_t size) {
  const auto nonsense = [&] {
    return Status(Errc::kProtocol, place_ + " answered a fetch with other bytes than were asked for");
  };
  std::span<const std::byte> bytes = entry.bytes;
  std::byte* mapped = nullptr;
  if (size > wire::kMaxInlineBytes) {
    const auto region = result_regions_.find(entry.region);
    if (region == result_regions_.end()) return nonsense();
    if (!region->second.failure.ok()) return region->second.failure;
    const datapath::RemoteRegion& import = region->second.import;
    if (entry.offset > import.size || size > import.size - entry.offset) return nonsense();
    mapped = import.mapped + entry.offset;
    bytes = {mapped, size};
    if (!entry.passing) {
      return std::unique_ptr<Fetched>(
          std::make_unique<RemoteFetched>(shared_from_this(), entry.result, std::span<std::byte>(mapped, size)));
    }
  } else if (bytes.size() != size) {
    return nonsense();
  }
  Result<datapath::Buffer> block = node::make_aligned_block(size);
  GENIE_TRY(block.status());
  if (size != 0) std::memcpy(block->data(), bytes.data(), size);
  if (mapped != nullptr) {
    // The second pass over a result for which the node was short of memory.
    add(fetch_copied_bytes_, size);
    release_result(entry.result, {mapped, size}, false);
  }
  return std::unique_ptr<Fetched>(std::make_unique<BlockFetched>(std::move(*block)));
}

// Any thread, at any time: never blocks on the transport.
void RemoteCore::release_result(uint64_t result, std::span<std::byte> bytes, bool written) noexcept {
  if (written) {
    // Results are whole pages, so nobody else's bytes go.
    auto* const begin = bytes.data();
    const size_t whole = datapath::round_up(bytes.size(), datapath::page_bytes());
    if (::madvise(begin, whole, MADV_DONTNEED) != 0) return;  // locked by the program: the node keeps the place
  }
  uint64_t waiting = 0;
  {
    const std::lock_guard lock(memory_mutex_);
    result_releases_.push_back(result);
    waiting = result_release_bytes_ += bytes.size();
  }
  // Whoever has the mutex submits something soon, or waits for somebody who did.
  if (waiting < kReleaseAtOnceBytes || !mutex_.try_lock()) return;
  send_releases_locked();
  mutex_.unlock();
}

std::vector<uint64_t> RemoteCore::take_releases() {
  const std::lock_guard lock(memory_mutex_);
  result_release_bytes_ = 0;
  if (result_releases_.size() <= kMaxReleases) return std::exchange(result_releases_, {});
  const auto first = result_releases_.end() - static_cast<std::ptrdiff_t>(kMaxReleases);
  std::vector<uint64_t> taken(first, result_releases_.end());
  result_releases_.erase(first, result_releases_.end());
  return taken;
}

// A message of its own, unless that would block: then they go with the next submission.
void RemoteCore::send_releases_locked() {
  if (!failure_.ok()) return;
  wire::ResultRelease release{take_releases()};
  const auto keep = [&] {
    const std::lock_guard lock(memory_mutex_);
    result_releases_.insert(result_releases_.end(), release.results.begin(), release.results.end());
  };
  const Result<std::span<const std::byte>> encoded = encoder_.encode(wire::ClientMessage(release));
  if (!encoded || encoded->size() > transport_->capabilities().max_send_bytes) return keep();
  auto* const copy = new std::vector<std::byte>(encoded->begin(), encoded->end());
  datapath::Buffer piece(
      copy->data(), copy->size(), {},
      [](void* context, std::byte*, size_t) noexcept { delete static_cast<std::vector<std::byte>*>(context); }, copy);
  const auto tag = static_cast<uint32_t>(wire::FragmentTag::kWhole);
  if (!transport_->send(endpoint_, piece, tag, {.deadline = Deadline::after_ms(options_.progress_timeout_ms)}).ok()) {
    keep();
  }
}

}  // namespace genie::session
