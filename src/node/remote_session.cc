#include "src/node/remote_session.h"

#include <algorithm>
#include <utility>

#include "datapath/base/log.h"

namespace genie::node {
namespace {

constexpr size_t kMaxRegions = 16384;
constexpr size_t kMaxWindows = 4096;
// Answers to requests for memory that wait for a client that does not read.
constexpr size_t kMaxOutbox = 4096;
// A client may let completions lie for long while it computes; its hang-up is noticed at once all the same.
constexpr uint64_t kSendDeadlineMs = 3'600'000;

Status violation(const std::string& what) { return {Errc::kProtocol, what}; }

bool fits(uint64_t offset, uint64_t size, uint64_t within) noexcept {
  return offset <= within && size <= within - offset;
}

}  // namespace

Status RemoteSession::handle(datapath::Transport& transport, uint32_t tag, std::span<const std::byte> piece,
                             const std::shared_ptr<ResponseSink>& sink) {
  const Result<std::span<const std::byte>> whole = incoming_.feed(tag, piece);
  GENIE_TRY(whole.status());
  if (whole->empty()) return {};
  Result<wire::ClientMessage> message = wire::decode_client_message(*whole);
  GENIE_TRY(message.status());
  if (const auto* submission = std::get_if<wire::SubmissionMessage>(&*message)) {
    return on_submission(transport, *submission, sink);
  }
  if (outbox_.size() >= kMaxOutbox) return violation("more requests for memory than answers were read");
  on_region_request(transport, std::get<wire::RegionRequest>(*message));
  return {};
}

Status RemoteSession::on_submission(datapath::Transport& transport, const wire::SubmissionMessage& message,
                                    const std::shared_ptr<ResponseSink>& sink) {
  if (!state_->try_enter()) return violation("more submissions in flight than the node allows");
  auto request = std::make_unique<Request>();
  const auto translate = [&]() -> Status {
    GENIE_TRY(accept_windows(transport, message));
    for (const wire::UploadEntry& entry : message.uploads) GENIE_TRY(order_upload(transport, entry, *request));
    for (const wire::FetchEntry& entry : message.fetches) GENIE_TRY(order_fetch(entry, *request));
    return accept_releases(message);
  };
  if (Status bad = translate(); !bad.ok()) {
    state_->leave();
    return bad;
  }
  request->ticket = message.ticket;
  request->stream = message.stream;
  request->epoch = message.epoch;
  request->frees = message.frees;
  request->template_id = message.template_id;
  request->slots = message.slots;
  request->param_index = message.param_index;
  request->param_value = message.param_value;
  request->sink = sink;
  if (next_tick_ns_ == 0) next_tick_ns_ = now_ns() + options_.progress_interval_ms * 1'000'000;
  post(std::make_unique<Work>(state_, std::move(request)));
  return {};
}

Status RemoteSession::accept_windows(datapath::Transport& transport, const wire::SubmissionMessage& message) {
  for (const wire::WindowOffer& offer : message.window_offers) {
    if (windows_.size() >= kMaxWindows) return violation("too many windows for results");
    if (windows_.contains(offer.window)) return violation("a window for results was offered twice");
    datapath::RemoteKey key;
    key.bytes = offer.key;
    const Result<datapath::RemoteRegion> imported = transport.import_region(endpoint_, key);
    if (!imported) return {imported.code(), "a window for results cannot be mapped: " + imported.status().to_string()};
    auto window = std::make_shared<Shared>();
    window->import = *imported;
    window->data = imported->mapped;
    window->size = imported->size;
    window->window = true;
    if (window->data == nullptr || imported->size < offer.size) {
      (void)transport.drop_import(*imported);
      return violation("a window for results is smaller than offered");
    }
    windows_.emplace(offer.window, std::move(window));
  }
  return {};
}

// After everything that the same message still uses.
Status RemoteSession::accept_releases(const wire::SubmissionMessage& message) {
  for (const uint32_t number : message.window_drops) {
    const auto found = windows_.find(number);
    if (found == windows_.end()) return violation("a window for results was dropped that was never offered");
    retire(std::move(found->second));
    windows_.erase(found);
  }
  for (const uint64_t number : message.region_releases) {
    const auto found = regions_.find(number);
    if (found == regions_.end()) return violation("a region was released that the client does not have");
    retire(std::move(found->second));
    regions_.erase(found);
  }
  return {};
}

Status RemoteSession::order_upload(datapath::Transport& transport, const wire::UploadEntry& entry, Request& request) {
  const auto found = regions_.find(entry.region);
  if (found == regions_.end()) return violation("an upload names a region that the client does not have");
  const std::shared_ptr<Shared> region = found->second;
  UploadOrder order{.storage = entry.storage};
  if (!entry.whole) {
    if (!region->window || !fits(entry.offset, entry.size, region->size)) {
      return violation("an upload reaches beyond its window");
    }
    order.memory = {.data = region->data + entry.offset, .size = entry.size, .writable = false, .owner = region};
    order.copy = true;
    request.uploads.push_back(std::move(order));
    return {};
  }
  if (region->window || entry.offset != 0 || entry.size > region->size) {
    return violation("an upload is not what its region was asked for");
  }
  regions_.erase(found);
  Result<datapath::Buffer> taken = transport.take_private(region->key);
  if (taken) {
    forget(*region);
    auto buffer = std::make_shared<datapath::Buffer>(std::move(*taken));
    order.memory = {.data = buffer->data(), .size = entry.size, .writable = true, .owner = nullptr};
    order.memory.owner = std::move(buffer);
  } else {
    // The client still has it mapped, or the kernel refuses: what it may write to is copied before anything reads it.
    order.memory = {.data = region->data, .size = entry.size, .writable = false, .owner = region};
    order.copy = true;
    retire(region);
  }
  request.uploads.push_back(std::move(order));
  return {};
}

Status RemoteSession::order_fetch(const wire::FetchEntry& entry, Request& request) const {
  FetchOrder order{.storage = entry.storage, .offset = entry.offset, .size = entry.size};
  if (entry.window == wire::kInlineWindow) {
    if (entry.size > wire::kMaxInlineBytes) return violation("a fetch is too large to ride in a completion");
  } else {
    const auto found = windows_.find(entry.window);
    if (found == windows_.end() || !fits(entry.window_offset, entry.size, found->second->size)) {
      return violation("a fetch reaches beyond its window");
    }
    order.target = {found->second->data + entry.window_offset, entry.size};
    order.target_owner = found->second;
  }
  request.fetches.push_back(std::move(order));
  return {};
}

void RemoteSession::on_region_request(datapath::Transport& transport, const wire::RegionRequest& request) {
  wire::RegionAnswer answer{.request = request.request};
  answer.status = make_region(transport, request, answer);
  send(wire::NodeMessage(std::move(answer)));
}

Status RemoteSession::make_region(datapath::Transport& transport, const wire::RegionRequest& request,
                                  wire::RegionAnswer& answer) {
  const uint64_t quota = state_->limits().memory_bytes;
  if (request.size == 0) return {Errc::kInvalidArgument, "a region of 0 bytes"};
  if (regions_.size() >= kMaxRegions) {
    return {Errc::kQuotaExceeded,
            device_.place() + ": " + std::to_string(kMaxRegions) + " uploads wait to be submitted: flush, then go on"};
  }
  if (request.size > quota || region_bytes_ > quota - request.size) {
    return {Errc::kQuotaExceeded, device_.place() + ": an upload of " + std::to_string(request.size) +
                                      " bytes does not fit into the session's memory quota of " +
                                      std::to_string(quota) +
                                      " bytes: free tensors, or raise the node's --memory-quota"};
  }
  constexpr uint64_t kAllocateMs = 30'000;
  Result<datapath::Region> region = transport.allocate(endpoint_, request.size, Deadline::after_ms(kAllocateMs));
  if (!region) {
    return {region.code(), device_.place() + ": cannot share " + std::to_string(request.size) +
                               " bytes: " + region.status().to_string()};
  }
  auto shared = std::make_shared<Shared>();
  shared->key = region->key;
  shared->data = region->data;
  shared->size = request.size;
  shared->ours = true;
  shared->window = request.window;
  region_bytes_ += shared->size;
  counters_.regions.fetch_add(1, std::memory_order_relaxed);
  counters_.bytes.fetch_add(shared->size, std::memory_order_relaxed);
  answer.region = next_region_++;
  answer.key = region->remote.bytes;
  regions_.emplace(answer.region, std::move(shared));
  return {};
}

void RemoteSession::forget(const Shared& memory) noexcept {
  if (!memory.ours) return;
  region_bytes_ -= memory.size;
  counters_.regions.fetch_sub(1, std::memory_order_relaxed);
  counters_.bytes.fetch_sub(memory.size, std::memory_order_relaxed);
}

void RemoteSession::respond(Response response) {
  if (ending_) return;
  wire::CompletionMessage message;
  message.ticket = response.ticket;
  message.status = std::move(response.status);
  message.failed_record = response.failed_record;
  message.executed_records = response.executed_records;
  message.upload_copied_bytes = response.upload_copied_bytes;
  message.fetch_copied_bytes = response.fetch_copied_bytes;
  message.reported = std::move(response.reported);
  const auto silent = [](const FetchResult& result) { return result.status.ok() && !result.block; };
  if (!std::ranges::all_of(response.fetched, silent)) {
    for (FetchResult& result : response.fetched) {
      wire::FetchedEntry& entry = message.fetched.emplace_back();
      entry.status = std::move(result.status);
      if (entry.status.ok() && result.block) {
        entry.bytes.assign(result.block.data(), result.block.data() + result.block.size());
      }
    }
  }
  if (state_->in_flight() == 0) next_tick_ns_ = 0;
  send(wire::NodeMessage(std::move(message)));
}

void RemoteSession::send(const wire::NodeMessage& message) {
  if (ending_ || !endpoint_.valid()) return;
  const Result<std::span<const std::byte>> bytes = encoder_.encode(message);
  if (!bytes) {
    GENIE_LOG_ERROR("session {}: {}", state_->number(), bytes.status().to_string());
    if (const auto* completion = std::get_if<wire::CompletionMessage>(&message)) {
      wire::CompletionMessage failed;
      failed.ticket = completion->ticket;
      failed.status = Status(Errc::kOutOfRange, "the answer is larger than a message may be: fetch less at once");
      for (size_t i = 0; i < completion->fetched.size(); ++i) failed.fetched.push_back({.status = failed.status});
      failed.fetched.resize(std::min<size_t>(failed.fetched.size(), 1024));
      send(wire::NodeMessage(std::move(failed)));
    }
    return;
  }
  outbox_.push_back({.bytes = {bytes->begin(), bytes->end()}});
}

void RemoteSession::say_farewell(const Status& why) { send(wire::NodeMessage(wire::Farewell{why})); }

void RemoteSession::tick(uint64_t now_ns) {
  if (next_tick_ns_ == 0 || now_ns < next_tick_ns_ || ending_) return;
  if (state_->in_flight() == 0) {
    next_tick_ns_ = 0;
    return;
  }
  next_tick_ns_ = now_ns + options_.progress_interval_ms * 1'000'000;
  const uint64_t progress = device_.progress().load(std::memory_order_relaxed);
  // A client that does not read needs no more signs of life than it has.
  if (progress == told_progress_ || !outbox_.empty()) return;
  told_progress_ = progress;
  send(wire::NodeMessage(wire::Progress{progress}));
}

void RemoteSession::post(std::unique_ptr<Work> work) {
  if (backlog_.empty() && device_.try_post(work).ok()) return;
  backlog_.push_back(std::move(work));
}

bool RemoteSession::post_backlog() {
  bool moved = false;
  while (!backlog_.empty()) {
    const Status posted = device_.try_post(backlog_.front());
    if (posted.code() == Errc::kAgain) break;
    if (!posted.ok()) state_->leave();  // the device has stopped: nobody will run it
    backlog_.pop_front();
    moved = true;
  }
  return moved;
}

bool RemoteSession::send_outbox(datapath::Transport& transport) {
  bool moved = false;
  const size_t piece_bytes = transport.capabilities().max_send_bytes;
  while (!outbox_.empty()) {
    Outgoing& front = outbox_.front();
    const size_t rest = front.bytes.size() - front.sent;
    const size_t size = std::min(rest, piece_bytes);
    const wire::FragmentTag tag = wire::tag_of(rest, piece_bytes, front.sent == 0);
    // The transport owns what it was given until the completion: a copy per piece, freed by the completion's buffer.
    auto* const copy = new std::vector<std::byte>(front.bytes.begin() + static_cast<std::ptrdiff_t>(front.sent),
                                                  front.bytes.begin() + static_cast<std::ptrdiff_t>(front.sent + size));
    datapath::Buffer piece(
        copy->data(), copy->size(), {},
        [](void* context, std::byte*, size_t) noexcept { delete static_cast<std::vector<std::byte>*>(context); }, copy);
    const Status sent = transport.send(
        endpoint_, piece, static_cast<uint32_t>(tag),
        {.transfer_class = datapath::TransferClass::kControl, .deadline = Deadline::after_ms(kSendDeadlineMs)});
    if (sent.code() == Errc::kAgain) break;
    if (!sent.ok()) {
      outbox_.clear();  // the endpoint is gone; its disconnection ends the session
      break;
    }
    moved = true;
    front.sent += size;
    if (front.sent == front.bytes.size()) outbox_.pop_front();
  }
  return moved;
}

// A worker that still reads or writes the memory holds a reference to it.
bool RemoteSession::give_back(datapath::Transport& transport) {
  const size_t before = retired_.size();
  std::erase_if(retired_, [&](const std::shared_ptr<Shared>& memory) {
    if (memory.use_count() != 1) return false;
    std::atomic_thread_fence(std::memory_order_acquire);
    if (memory->ours) {
      if (transport.release(memory->key).code() == Errc::kBusy) return false;
      forget(*memory);
    } else {
      (void)transport.drop_import(memory->import);
    }
    return true;
  });
  return retired_.size() != before;
}

bool RemoteSession::pump(datapath::Transport& transport) {
  bool moved = post_backlog();
  if (!ending_ && endpoint_.valid()) moved |= send_outbox(transport);
  moved |= give_back(transport);
  return moved;
}

void RemoteSession::begin_end() {
  ending_ = true;
  outbox_.clear();
  for (auto& [number, region] : regions_) retire(std::move(region));
  for (auto& [number, window] : windows_) retire(std::move(window));
  regions_.clear();
  windows_.clear();
}

bool RemoteSession::gone() const noexcept {
  return ending_ && state_->ended() && state_->in_flight() == 0 && backlog_.empty() && retired_.empty();
}

}  // namespace genie::node
