// Results of a RemoteSession: where they lie, what the client is told of it, and what it holds.
#include <algorithm>
#include <cstring>
#include <utility>

#include "datapath/base/log.h"
#include "src/node/remote_session.h"

namespace genie::node {

Status RemoteSession::order_fetches(datapath::Transport& transport, const wire::SubmissionMessage& message,
                                    Request& request) {
  std::vector<Target> targets;
  bool any = false;
  for (const wire::FetchEntry& entry : message.fetches) {
    Result<Target> target = target_of(entry);
    GENIE_TRY(target.status());
    if (target->window != nullptr) {
      any = true;
      // The storage's own bytes, where the store shares them: they are written from where they are.
      request.fetches.push_back({.storage = entry.storage, .offset = entry.offset, .size = entry.size, .share = true});
    } else {
      order_fetch(transport, entry, request);
    }
    targets.push_back(std::move(*target));
  }
  if (any && !targets_.emplace(message.ticket, std::move(targets)).second) {
    return {Errc::kProtocol, "two submissions in flight with one ticket"};
  }
  return {};
}

Result<RemoteSession::Target> RemoteSession::target_of(const wire::FetchEntry& entry) const {
  if (entry.window == wire::kNoWindow) return Target();
  const auto found = windows_.find(entry.window);
  if (found == windows_.end() || !fits(entry.place, entry.size, found->second->size)) {
    return Status(Errc::kProtocol, "a result is wanted beyond its window");
  }
  if (found->second->data != nullptr) return Status(Errc::kProtocol, "a result is wanted in a window for uploads");
  return Target{found->second, entry.place};
}

// The buffer keeps the bytes: the storage's own, or a copy.
RemoteSession::ResultWrite RemoteSession::write_of(FetchResult& result, Target target) {
  if (result.shared.holder == nullptr) return {std::move(result.block), std::move(target)};
  using Holder = std::shared_ptr<const void>;
  const std::span<std::byte> bytes = result.shared.bytes;
  datapath::Buffer buffer(
      bytes.data(), bytes.size(), {},
      [](void* holder, std::byte*, size_t) noexcept { delete static_cast<Holder*>(holder); },
      new Holder(std::move(result.shared.holder)));
  return {std::move(buffer), std::move(target)};
}

void RemoteSession::order_fetch(datapath::Transport& transport, const wire::FetchEntry& entry, Request& request) {
  FetchOrder order{.storage = entry.storage, .offset = entry.offset, .size = entry.size};
  if (entry.size > wire::kMaxInlineBytes) {
    Result<std::shared_ptr<ResultSpan>> place = reserve_result(transport, entry.size);
    if (place) {
      order.place = std::move(*place);
    } else {
      order.refused = place.status();
    }
  }
  request.fetches.push_back(std::move(order));
}

Result<std::shared_ptr<ResultSpan>> RemoteSession::reserve_result(datapath::Transport& transport, size_t size) {
  if (std::shared_ptr<ResultSpan> place = results_->reserve(size)) return place;
  GENIE_TRY(add_result_region(transport, size));
  std::shared_ptr<ResultSpan> place = results_->reserve(size);
  if (place == nullptr) return Status(Errc::kInternal, "a fresh region has no room for its result");
  return place;
}

// Only the address range and the seals are made here; the memory itself comes to be when the worker writes it.
Status RemoteSession::add_result_region(datapath::Transport& transport, size_t size) {
  const uint64_t quota = state_->limits().memory_bytes;
  const ResultMemory::Bytes held = results_->region_bytes();
  const auto refused = [&](Errc code, const std::string& why) {
    return Status(code, "no memory for a result of " + std::to_string(size) + " bytes beside " +
                            std::to_string(held.kept + held.passing) +
                            " bytes of results that the program keeps: " + why);
  };
  if (size > quota) return refused(Errc::kQuotaExceeded, "it is more than the session's memory quota");
  const ResultMemory::Wish wish = results_->wish(size);
  // Beyond the limit only results that are about to be copied out, and no more of them than the session may store.
  if (wish.passing && held.passing > quota - size) {
    return refused(Errc::kQuotaExceeded, "let go of some, or raise the node's --memory-quota");
  }
  const Result<datapath::Region> region = transport.publish(endpoint_, wish.bytes);
  if (!region) return refused(region.code(), region.status().to_string());
  auto made = std::make_shared<ResultRegion>(ResultRegion{region->key, wish.bytes});
  counters_.regions.fetch_add(1, std::memory_order_relaxed);
  counters_.bytes.fetch_add(made->size, std::memory_order_relaxed);
  const uint32_t number = next_result_region_++;
  results_->add(number, {region->data, wish.bytes}, wish.passing, made);
  result_regions_.emplace(number, std::move(made));
  send(wire::NodeMessage(wire::ResultRegion{.region = number, .size = wish.bytes, .key = region->remote.bytes}));
  return {};
}

// One fetch's part of the completion. What the client holds from now on has a name.
void RemoteSession::enter_result(datapath::Transport& transport, FetchResult& result,
                                 wire::CompletionMessage& message) {
  wire::FetchedEntry& entry = message.fetched.emplace_back();
  entry.status = std::move(result.status);
  if (!entry.status.ok()) return;
  std::span<const std::byte> bytes = result.shared.holder != nullptr ? result.shared.bytes : result.block.bytes();
  if (bytes.size() <= wire::kMaxInlineBytes) {
    entry.bytes.assign(bytes.begin(), bytes.end());
    return;
  }
  std::optional<ResultMemory::Place> place = results_->find(bytes.data(), bytes.size());
  if (!place) {
    // Something else was born in its place and no room was left: rare enough for this thread.
    Result<std::shared_ptr<ResultSpan>> span = reserve_result(transport, bytes.size());
    if (!span) {
      entry.status = span.status();
      return;
    }
    std::memcpy((*span)->bytes().data(), bytes.data(), bytes.size());
    message.fetch_copied_bytes += bytes.size();
    place = results_->find((*span)->bytes().data(), bytes.size());
    result.shared.holder = std::move(*span);
  }
  entry.result = next_result_++;
  entry.region = place->region;
  entry.offset = place->offset;
  entry.passing = place->passing;
  held_results_.emplace(entry.result, std::move(result.shared.holder));
}

Status RemoteSession::release_results(std::span<const uint64_t> results) {
  if (results.empty()) return {};
  for (const uint64_t result : results) {
    if (held_results_.erase(result) == 0 && held_blobs_.erase(result) == 0) {
      return {Errc::kProtocol, "a result was released that the client does not hold"};
    }
  }
  drop_idle_results(now_ns());
  return {};
}

void RemoteSession::drop_idle_results(uint64_t now_ns) {
  if (result_regions_.empty() || ending_) return;
  for (const uint32_t number : results_->take_idle(now_ns)) {
    send(wire::NodeMessage(wire::ResultRegion{.region = number}));
    const auto found = result_regions_.find(number);
    retired_regions_.push_back(std::move(found->second));
    result_regions_.erase(found);
  }
}

// A region whose spans are not all gone is kept by them.
bool RemoteSession::give_regions_back(datapath::Transport& transport) {
  const size_t before = retired_regions_.size();
  std::erase_if(retired_regions_, [&](const std::shared_ptr<ResultRegion>& region) {
    if (region.use_count() != 1) return false;
    std::atomic_thread_fence(std::memory_order_acquire);
    if (transport.release(region->key).code() == Errc::kBusy) return false;
    counters_.regions.fetch_sub(1, std::memory_order_relaxed);
    counters_.bytes.fetch_sub(region->size, std::memory_order_relaxed);
    return true;
  });
  return retired_regions_.size() != before;
}

void RemoteSession::end_results() {
  for (auto& [number, region] : result_regions_) retired_regions_.push_back(std::move(region));
  result_regions_.clear();
  held_results_.clear();
  results_.reset();  // its spans keep it
}

}  // namespace genie::node
