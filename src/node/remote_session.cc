#include "src/node/remote_session.h"

#include <algorithm>
#include <utility>

#include "datapath/base/log.h"

namespace genie::node {
namespace {

constexpr size_t kMaxWindows = 4096;
// A client may let completions lie for long while it computes; its hang-up is noticed at once all the same.
constexpr uint64_t kSendDeadlineMs = 3'600'000;

Status violation(const std::string& what) { return {Errc::kProtocol, what}; }

}  // namespace

RemoteSession::RemoteSession(RemoteSessionOptions options, std::shared_ptr<SessionState> state, Device& device,
                             SharedMemoryCounters& counters)
    : options_(std::move(options)),
      state_(std::move(state)),
      device_(device),
      counters_(counters),
      results_(std::make_shared<ResultMemory>(std::min(state_->limits().result_bytes, state_->limits().memory_bytes))) {
}

Status RemoteSession::handle(datapath::Transport& transport, uint32_t tag, std::span<const std::byte> piece,
                             const std::shared_ptr<ResponseSink>& sink) {
  const Result<std::span<const std::byte>> whole = incoming_.feed(tag, piece);
  GENIE_TRY(whole.status());
  if (whole->empty()) return {};
  Result<wire::ClientMessage> message = wire::decode_client_message(*whole);
  GENIE_TRY(message.status());
  if (const auto* release = std::get_if<wire::ResultRelease>(&*message)) return release_results(release->results);
  if (const auto* question = std::get_if<wire::Question>(&*message)) return on_question(*question);
  return on_submission(transport, std::get<wire::SubmissionMessage>(*message), sink);
}

Status RemoteSession::on_submission(datapath::Transport& transport, const wire::SubmissionMessage& message,
                                    const std::shared_ptr<ResponseSink>& sink) {
  if (!state_->try_enter()) return violation("more submissions in flight than the node allows");
  auto request = std::make_unique<Request>();
  const auto translate = [&]() -> Status {
    GENIE_TRY(release_results(message.result_releases));  // first: the same submission may use the room
    GENIE_TRY(accept_windows(transport, message));
    GENIE_TRY(order_uploads(transport, message, *request));
    GENIE_TRY(order_fetches(transport, message, *request));
    return read_invocation(message, *request);
  };
  if (Status bad = translate(); !bad.ok()) {
    state_->leave();
    return bad;
  }
  request->ticket = message.ticket;
  request->stream = message.stream;
  request->epoch = message.epoch;
  request->frees = message.frees;
  request->sink = sink;
  if (next_tick_ns_ == 0) next_tick_ns_ = now_ns() + options_.progress_interval_ms * 1'000'000;
  post(std::make_unique<Work>(state_, std::move(request)));
  return {};
}

Status RemoteSession::read_invocation(const wire::SubmissionMessage& message, Request& request) {
  request.template_id = message.template_id;
  if (message.template_id == 0) return {};
  Result<wire::InvocationNumbers> numbers = invocations_.decode(message.template_id, message.invocation);
  GENIE_TRY(numbers.status());
  request.slots = std::move(numbers->slots);
  request.param_index = std::move(numbers->param_index);
  request.param_value = std::move(numbers->param_value);
  return {};
}

Status RemoteSession::accept_windows(datapath::Transport& transport, const wire::SubmissionMessage& message) {
  for (const wire::WindowOffer& offer : message.window_offers) {
    if (windows_.size() >= kMaxWindows) return violation("too many windows");
    if (windows_.contains(offer.window)) return violation("a window was offered twice");
    datapath::RemoteKey key;
    key.bytes = offer.key;
    const Result<datapath::RemoteRegion> imported = transport.import_region(endpoint_, key);
    if (!imported) return {imported.code(), "a window cannot be mapped: " + imported.status().to_string()};
    const bool unmapped = imported->mapped == nullptr && transport.capabilities().maps_remote_memory;
    if (unmapped || imported->size < offer.size) {
      (void)transport.drop_import(*imported);
      return violation("a window is smaller than offered");
    }
    auto window = std::make_shared<Window>(Window{*imported, imported->mapped, imported->size});
    counters_.regions.fetch_add(1, std::memory_order_relaxed);
    counters_.bytes.fetch_add(window->size, std::memory_order_relaxed);
    windows_.emplace(offer.window, std::move(window));
  }
  return {};
}

Result<UploadOrder> RemoteSession::order_from_window(const wire::UploadEntry& entry) const {
  const auto found = windows_.find(entry.window);
  if (found == windows_.end() || !fits(entry.offset, entry.size, found->second->size)) {
    return violation("an upload reaches beyond its window");
  }
  if (found->second->data == nullptr) return violation("an upload in memory that this transport does not map");
  UploadOrder order{.storage = entry.storage};
  order.memory = {.data = found->second->data + entry.offset, .size = entry.size, .owner = found->second};
  order.copy = true;
  return order;
}

// Storages that lie in one region are apart from each other, so that a write to one is never a write to another.
Status RemoteSession::order_uploads(datapath::Transport& transport, const wire::SubmissionMessage& message,
                                    Request& request) {
  std::vector<std::shared_ptr<UploadRegion>> regions;
  for (const wire::Key& key : message.regions) {
    Result<datapath::Taken> taken = transport.take(endpoint_, datapath::RemoteKey{key});
    const Status why = taken.status();
    if (why.code() == Errc::kNotFound || why.code() == Errc::kProtocol) {
      return violation("a region for uploads is not what it should be: " + why.to_string());
    }
    auto memory = std::make_shared<RegionMemory>(taken ? std::move(*taken) : datapath::Taken());
    regions.push_back(std::make_shared<UploadRegion>(why, std::move(memory), state_->regions()));
    remember_stake(regions.back());
    if (RegionMemory::live() > UploadRegion::kMaxOfNode) {
      regions.back()->fail({Errc::kQuotaExceeded, device_.place() + ": too many regions for uploads: free tensors"});
    }
  }
  struct Part {
    uint32_t region;
    uint64_t begin;
    uint64_t end;
    auto operator<=>(const Part&) const = default;
  };
  std::vector<Part> parts;
  for (const wire::UploadEntry& entry : message.uploads) {
    if (entry.window != wire::kNoWindow) {
      Result<UploadOrder> order = order_from_window(entry);
      GENIE_TRY(order.status());
      request.uploads.push_back(std::move(*order));
      continue;
    }
    if (entry.region == wire::kKnownBlob) {
      Result<UploadOrder> order = order_known(entry);
      GENIE_TRY(order.status());
      request.uploads.push_back(std::move(*order));
      continue;
    }
    if (entry.region >= regions.size()) return violation("an upload names a region that the submission does not bring");
    const std::shared_ptr<UploadRegion>& region = regions[entry.region];
    UploadOrder& order = request.uploads.emplace_back(UploadOrder{.storage = entry.storage, .region = region});
    if (!region->status().ok()) continue;
    const datapath::Buffer& memory = region->taken().memory;
    if (!fits(entry.offset, entry.size, memory.size()) || entry.offset % wire::kUploadAlignment != 0) {
      return violation("an upload reaches beyond its region");
    }
    if (entry.size != 0) parts.push_back({entry.region, entry.offset, entry.offset + entry.size});
    order.memory = {.data = memory.data() + entry.offset,
                    .size = entry.size,
                    .writable = region->taken().writable,
                    .owner = region,
                    .counted_besides = true};
  }
  std::ranges::sort(parts);
  const auto overlap = [](const Part& a, const Part& b) { return a.region == b.region && b.begin < a.end; };
  if (std::ranges::adjacent_find(parts, overlap) != parts.end()) return violation("two uploads overlap");
  return {};
}

void RemoteSession::respond(datapath::Transport& transport, Response response) {
  if (ending_) return;
  wire::CompletionMessage message;
  message.ticket = response.ticket;
  message.status = std::move(response.status);
  message.failed_record = response.failed_record;
  message.executed_records = response.executed_records;
  message.upload_copied_bytes = response.upload_copied_bytes;
  message.fetch_copied_bytes = response.fetch_copied_bytes;
  message.reported = std::move(response.reported);
  std::vector<Target> targets;
  if (const auto found = targets_.find(response.ticket); found != targets_.end()) {
    targets = std::move(found->second);
    targets_.erase(found);
  }
  std::vector<ResultWrite> writes;
  for (size_t i = 0; i < response.fetched.size(); ++i) {
    FetchResult& result = response.fetched[i];
    if (i < targets.size() && targets[i].window != nullptr && result.status.ok()) {
      writes.push_back(write_of(result, std::move(targets[i])));
      message.fetched.emplace_back();
    } else {
      enter_result(transport, result, message);
    }
  }
  if (state_->in_flight() == 0) next_tick_ns_ = 0;
  send(wire::NodeMessage(std::move(message)), std::move(writes));
}

void RemoteSession::send(const wire::NodeMessage& message, std::vector<ResultWrite> writes) {
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
  outbox_.push_back({.writes = std::move(writes), .bytes = {bytes->begin(), bytes->end()}});
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

// Results that are written go before the message that tells of them, in its class: so they are there when it comes.
Status RemoteSession::post_writes(datapath::Transport& transport) {
  Outgoing& front = outbox_.front();
  for (; front.written < front.writes.size(); ++front.written) {
    ResultWrite& write = front.writes[front.written];
    GENIE_TRY(transport.write(
        endpoint_, write.bytes, write.target.window->import, write.target.offset,
        {.transfer_class = datapath::TransferClass::kControl, .deadline = Deadline::after_ms(kSendDeadlineMs)}));
    write.target.window.reset();
  }
  return {};
}

bool RemoteSession::send_outbox(datapath::Transport& transport) {
  bool moved = false;
  const size_t piece_bytes = transport.capabilities().max_send_bytes;
  while (!outbox_.empty()) {
    const Status written = post_writes(transport);
    if (written.code() == Errc::kAgain) break;
    if (!written.ok()) {
      GENIE_LOG_INFO("session {}: a result cannot be written: {}", state_->number(), written.to_string());
      (void)transport.close(endpoint_);
      outbox_.clear();
      break;
    }
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
  std::erase_if(retired_, [&](const std::shared_ptr<Window>& window) {
    if (window.use_count() != 1) return false;
    std::atomic_thread_fence(std::memory_order_acquire);
    if (transport.drop_import(window->import).code() == Errc::kBusy) return false;
    counters_.regions.fetch_sub(1, std::memory_order_relaxed);
    counters_.bytes.fetch_sub(window->size, std::memory_order_relaxed);
    return true;
  });
  return retired_.size() != before;
}

bool RemoteSession::pump(datapath::Transport& transport) {
  bool moved = post_backlog();
  if (!ending_ && endpoint_.valid()) moved |= send_outbox(transport);
  moved |= give_back(transport);
  moved |= give_regions_back(transport);
  return moved;
}

void RemoteSession::begin_end() {
  ending_ = true;
  outbox_.clear();
  for (auto& [number, window] : windows_) retire(std::move(window));
  windows_.clear();
  targets_.clear();
  end_content();
  end_results();
}

bool RemoteSession::gone() const noexcept {
  return ending_ && state_->ended() && state_->in_flight() == 0 && backlog_.empty() && retired_.empty() &&
         retired_regions_.empty();
}

}  // namespace genie::node
