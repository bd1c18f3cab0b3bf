#include "src/node/session_state.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "datapath/memory/pages.h"
#include "src/node/aligned_block.h"

namespace genie::node {
namespace {

// A client that makes more failing streams or uploads than this gets no more memory for them: the oldest answers become
// less precise, nothing else.
constexpr size_t kMaxRememberedFailures = 4096;

std::shared_ptr<void> share(datapath::Buffer block) { return std::make_shared<datapath::Buffer>(std::move(block)); }

// The order's own place, unless something else of that size was born there and lives on; then another one, if there is room.
std::shared_ptr<ResultSpan> free_place(const FetchOrder& order) {
  if (order.place == nullptr || order.place.use_count() == 1) return order.place;
  return order.place->memory().reserve(order.size);
}

// New storages that are fetched whole, or nearly so, are born where the client can read them.
class FetchPlaces final : public executor::Birthplace {
 public:
  explicit FetchPlaces(std::span<const FetchOrder> orders) : orders_(orders) {}

  executor::HostMemory place(uint64_t storage, size_t size) noexcept override try {
    const auto wanted = [&](const FetchOrder& order) {
      return order.place != nullptr && order.storage.id == storage && order.size <= size && order.size >= size / 2;
    };
    const auto order = std::ranges::find_if(orders_, wanted);
    if (order == orders_.end()) return {};
    const std::shared_ptr<ResultSpan> span =
        order->size == size ? free_place(*order) : order->place->memory().reserve(size);
    if (span == nullptr || !span->make_present().ok()) return {};
    return {.data = span->bytes().data(), .size = size, .writable = true, .owner = span};
  } catch (const std::bad_alloc&) {
    return {};
  }

 private:
  const std::span<const FetchOrder> orders_;
};

}  // namespace

SessionState::SessionState(uint64_t number, std::string place, int threads, SessionLimits limits,
                           std::atomic<uint64_t>* progress, ContentAccess content)
    : number_(number),
      place_(std::move(place)),
      threads_(threads),
      limits_(limits),
      progress_(progress),
      content_(std::move(content)) {}

Result<uint64_t> SessionState::add_template(std::span<const std::byte> serialized, std::span<const uint64_t> forget) {
  const auto check_room = [&]() -> Status {
    if (templates_.size() < limits_.templates && serialized.size() <= limits_.template_bytes - template_bytes_)
      return {};
    return {Errc::kQuotaExceeded, place_ + ": the session holds " + std::to_string(templates_.size()) + " templates (" +
                                      std::to_string(template_bytes_) +
                                      " bytes), the node allows no more: forget some, or raise the node's limit"};
  };
  {
    const std::lock_guard lock(template_mutex_);
    for (const uint64_t id : forget) {
      const auto found = templates_.find(id);
      if (found == templates_.end()) continue;
      template_bytes_ -= found->second.bytes;
      templates_.erase(found);
    }
    GENIE_TRY(check_room());
  }
  Result<std::shared_ptr<const executor::Program>> program = executor::compile(serialized, limits_.trust);
  if (!program) return located(program.status());
  const std::lock_guard lock(template_mutex_);
  if (closed()) return Status(Errc::kCancelled, place_ + ": the session is closed");
  GENIE_TRY(check_room());
  template_bytes_ += serialized.size();
  const uint64_t id = next_template_++;
  templates_.emplace(id, Template{std::move(*program), serialized.size()});
  return id;
}

size_t SessionState::template_count() const {
  const std::lock_guard lock(template_mutex_);
  return templates_.size();
}

bool SessionState::try_enter() noexcept {
  uint32_t now = in_flight_.load(std::memory_order_relaxed);
  while (now < limits_.in_flight) {
    if (in_flight_.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel, std::memory_order_relaxed))
      return true;
  }
  return false;
}

std::shared_ptr<const executor::Program> SessionState::find_template(uint64_t id) const {
  const std::lock_guard lock(template_mutex_);
  const auto found = templates_.find(id);
  return found == templates_.end() ? nullptr : found->second.program;
}

executor::Store* SessionState::store_st() {
  // Made on first use: a session that only connects costs no store.
  if (store_ == nullptr) {
    store_ = executor::Store::make({.threads = threads_,
                                    .quota_bytes = limits_.memory_bytes,
                                    .held_besides_bytes = &regions_->bytes,
                                    .progress = progress_});
  }
  return store_.get();
}

Response SessionState::run_st(Request& request) {
  Response response;
  response.ticket = request.ticket;
  if (closed()) {
    response.status = Status(Errc::kCancelled, place_ + ": the session was closed before this submission ran");
    response.fetched.resize(request.fetches.size());
    for (FetchResult& fetched : response.fetched) fetched.status = response.status;
    return response;
  }
  free_st(request);
  Status status = adopt_st(request, response);
  if (status.ok() && request.template_id != 0) status = invoke_st(request, response);
  fetch_st(request, response);
  return_lent_st(request, response);
  if (status.ok()) {
    // The invocation is fine: the first fetch that is not speaks for the submission.
    const auto bad = std::ranges::find_if(response.fetched, [](const FetchResult& f) { return !f.status.ok(); });
    if (bad != response.fetched.end()) response.status = bad->status;
  } else {
    response.status = located(status);
  }
  if (store_ != nullptr) {
    bytes_in_use_.store(store_->bytes_in_use(), std::memory_order_relaxed);
    storage_count_.store(store_->storage_count(), std::memory_order_relaxed);
  }
  return response;
}

void SessionState::end_st() {
  if (ending_.exchange(true, std::memory_order_acq_rel)) return;
  store_.reset();
  failed_streams_.clear();
  failed_uploads_.clear();
  params_ = {};
  placed_ = {};
  bytes_in_use_.store(0, std::memory_order_relaxed);
  storage_count_.store(0, std::memory_order_relaxed);
  {
    const std::lock_guard lock(template_mutex_);
    templates_.clear();
    template_bytes_ = 0;
  }
  {
    const std::lock_guard lock(ended_mutex_);
    ended_.store(true, std::memory_order_release);
  }
  ended_signal_.notify_all();
}

// Whoever leaves counts down, then looks whether the session is closed; whoever waits has closed it, then looks at the
// count. In one order of all four, so at least one of the two sees the other.
void SessionState::leave() noexcept {
  if (in_flight_.fetch_sub(1) != 1 || !closed_.load()) return;
  { const std::lock_guard lock(ended_mutex_); }
  ended_signal_.notify_all();
}

bool SessionState::wait_released(Deadline deadline) {
  std::unique_lock lock(ended_mutex_);
  return ended_signal_.wait_for(lock, std::chrono::nanoseconds(deadline.left_ns()),
                                [this] { return ended() && in_flight_.load() == 0; });
}

void SessionState::free_st(const Request& request) {
  if (request.frees.empty()) return;
  executor::Store* const store = store_st();
  for (const uint64_t id : request.frees) {
    store->free(id);
    if (!failed_uploads_.empty()) failed_uploads_.erase(id);
  }
}

Status SessionState::adopt_st(Request& request, Response& response) {
  Status first;
  for (UploadOrder& order : request.uploads) {
    Status status = adopt_one_st(order, response);
    if (status.ok()) continue;
    if (failed_uploads_.size() < kMaxRememberedFailures) failed_uploads_.emplace(order.storage.id, status);
    if (first.ok()) first = std::move(status);
  }
  if (first.ok()) return first;
  // What the invocation would have computed is as lost as the upload.
  if (request.template_id != 0) {
    if (const auto program = find_template(request.template_id);
        program != nullptr && executor::bound_slot_count(*program) == request.slots.size()) {
      store_st()->poison(*program, request.slots, first);
    }
    remember_failure_st(request.stream, request.epoch, first);
  }
  return first;
}

// What was lent may be written again as soon as the response is out. A storage that lives on gets bytes of its own.
void SessionState::return_lent_st(const Request& request, Response& response) {
  for (const UploadOrder& order : request.uploads) {
    if (order.lent == nullptr) continue;
    if (order.transient) {
      store_st()->free(order.storage.id);
    } else {
      response.upload_copied_bytes += store_st()->keep(order.storage.id, order.lent);
    }
  }
}

// Once per region, by the worker: what takes long here would hold up everybody on the poller.
Status SessionState::settle_st(UploadRegion& region) {
  if (region.charged() || !region.status().ok()) return region.status();
  const datapath::Taken& taken = region.taken();
  // These are copied and let go of: the copies are what counts.
  if (!taken.final || region.account().count.load(std::memory_order_relaxed) > UploadRegion::kMaxKeptBySession)
    return {};
  if (Status status = store_st()->admit(taken.resident_bytes); !status.ok()) {
    region.fail(std::move(status));
  } else if (!datapath::prefault_read(taken.memory.data(), taken.memory.size()).ok()) {
    // Holes that the client left: pages that this process would have to find now.
    region.fail(Status(Errc::kOutOfMemory, "no memory for the parts of an upload that were never written"));
  } else {
    region.charge();
  }
  return region.status();
}

// Whoever reads the memory through this storage keeps the session's hold on it, and its stake in the region.
void SessionState::share_st(UploadOrder& order) const {
  if (order.content == nullptr) {
    order.content = content_.add({order.memory.data, order.memory.size}, order.region->memory());
  }
  if (order.content == nullptr) return;
  using Kept = std::pair<std::shared_ptr<ContentHold>, std::shared_ptr<UploadRegion>>;
  order.memory.owner = std::make_shared<Kept>(order.content, order.region);
  order.memory.content = std::move(order.content);
}

Status SessionState::adopt_one_st(UploadOrder& order, Response& response) {
  if (order.region != nullptr) {
    GENIE_TRY(settle_st(*order.region));
    order.copy = !order.region->charged();
    if (!order.copy) share_st(order);
  }
  if (!order.copy) return store_st()->adopt(order.storage, std::move(order.memory));
  if (order.memory.size > limits_.memory_bytes) {
    return {Errc::kQuotaExceeded, "an upload of " + std::to_string(order.memory.size) +
                                      " bytes is more than the session's memory quota of " +
                                      std::to_string(limits_.memory_bytes) + " bytes"};
  }
  Result<datapath::Buffer> block = make_aligned_block(order.memory.size);
  GENIE_TRY(block.status());
  if (order.memory.size != 0) std::memcpy(block->data(), order.memory.data, order.memory.size);
  response.upload_copied_bytes += order.memory.size;
  executor::HostMemory memory{.data = block->data(), .size = block->size(), .writable = true, .owner = nullptr};
  memory.owner = share(std::move(*block));
  return store_st()->adopt(order.storage, std::move(memory));
}

Status SessionState::check_st(const Request& request, const executor::Program& program) const {
  if (request.slots.size() != executor::bound_slot_count(program)) {
    return {Errc::kInvalidArgument, "template " + std::to_string(request.template_id) + " binds " +
                                        std::to_string(executor::bound_slot_count(program)) +
                                        " storages, the submission brings " + std::to_string(request.slots.size())};
  }
  const size_t params = executor::param_count(program);
  const bool in_range = std::ranges::all_of(request.param_index, [&](uint32_t index) { return index < params; });
  if (!in_range || request.param_index.size() != request.param_value.size()) {
    return {Errc::kInvalidArgument, "template " + std::to_string(request.template_id) + " has " +
                                        std::to_string(params) + " parameters, the submission patches others"};
  }
  return {};
}

Status SessionState::invoke_st(const Request& request, Response& response) {
  const std::shared_ptr<const executor::Program> program = find_template(request.template_id);
  if (program == nullptr) {
    Status unknown(Errc::kNotFound,
                   "template " + std::to_string(request.template_id) + " is not registered in this session");
    remember_failure_st(request.stream, request.epoch, unknown);
    return unknown;
  }
  if (Status bad = check_st(request, *program); !bad.ok()) {
    remember_failure_st(request.stream, request.epoch, bad);
    return bad;
  }
  executor::Store* const store = store_st();
  if (const Failure* failure = failed_st(request.stream, request.epoch)) {
    store->poison(*program, request.slots, failure->why);
    return {Errc::kPoisoned, "not run: an earlier submission of stream " + std::to_string(request.stream) +
                                 " failed: " + std::string(failure->why.text())};
  }
  if (!failed_uploads_.empty()) {
    for (const executor::SlotBinding& slot : request.slots) {
      const auto lost = failed_uploads_.find(slot.id);
      if (lost == failed_uploads_.end()) continue;
      const Status why = lost->second;
      store->poison(*program, request.slots, why);
      remember_failure_st(request.stream, request.epoch, why);
      return why;
    }
  }
  const std::span<const int64_t> defaults = executor::default_params(*program);
  params_.assign(defaults.begin(), defaults.end());
  for (size_t i = 0; i < request.param_index.size(); ++i) params_[request.param_index[i]] = request.param_value[i];

  placed_.clear();
  for (const FetchOrder& order : request.fetches) {
    if (order.place != nullptr) placed_.push_back(order.storage.id);
  }
  FetchPlaces places(request.fetches);
  executor::InvokeOutcome outcome = store->invoke(*program, request.slots, params_, placed_, &places);
  response.failed_record = outcome.failed_record;
  response.executed_records = outcome.executed_records;
  response.reported = std::move(outcome.reported);
  response.fetch_copied_bytes += outcome.unshared_bytes;
  response.upload_copied_bytes += outcome.claimed_bytes;
  if (!outcome.status.ok()) remember_failure_st(request.stream, request.epoch, outcome.status);
  return outcome.status;
}

void SessionState::fetch_st(const Request& request, Response& response) {
  response.fetched.reserve(request.fetches.size());
  for (const FetchOrder& order : request.fetches) response.fetched.push_back(fetch_one_st(order, response));
}

FetchResult SessionState::fetch_one_st(const FetchOrder& order, Response& response) {
  FetchResult result;
  const auto failed = [&](const Status& why) {
    result.status = located(why);
    return std::move(result);
  };
  if (const auto lost = failed_uploads_.find(order.storage.id); lost != failed_uploads_.end()) {
    return failed(Status(Errc::kPoisoned, std::string(lost->second.text())));
  }
  executor::Store* const store = store_st();
  const Result<std::span<const std::byte>> bytes = store->bytes(order.storage, order.offset, order.size);
  if (!bytes) return failed(bytes.status());
  if (!order.refused.ok()) return failed(order.refused);
  const bool reachable =
      order.share || (order.place != nullptr && order.place->memory().find(bytes->data(), bytes->size()));
  if (reachable) {
    // In a client's mapping two results cannot share their bytes: what the program writes to one would show in the other.
    const bool once = order.place != nullptr;
    Result<executor::SharedBytes> shared = store->share(order.storage, order.offset, order.size, once);
    if (shared && shared->holder != nullptr) {
      result.shared = std::move(*shared);
      return result;
    }
  }
  response.fetch_copied_bytes += bytes->size();
  if (const std::shared_ptr<ResultSpan> place = free_place(order); place != nullptr) {
    if (Status present = place->make_present(); !present.ok()) return failed(present);
    std::memcpy(place->bytes().data(), bytes->data(), bytes->size());
    result.shared = {.bytes = place->bytes(), .holder = place};
    return result;
  }
  Result<datapath::Buffer> block = make_aligned_block(bytes->size());
  if (!block) return failed(block.status());
  if (!bytes->empty()) std::memcpy(block->data(), bytes->data(), bytes->size());
  result.block = std::move(*block);
  return result;
}

const SessionState::Failure* SessionState::failed_st(uint32_t stream, uint32_t epoch) {
  const auto found = failed_streams_.find(stream);
  if (found == failed_streams_.end()) return nullptr;
  if (found->second.epoch >= epoch) return &found->second;
  failed_streams_.erase(found);  // the client knows and started a new epoch
  return nullptr;
}

void SessionState::remember_failure_st(uint32_t stream, uint32_t epoch, const Status& why) {
  if (failed_streams_.size() >= kMaxRememberedFailures && !failed_streams_.contains(stream)) failed_streams_.clear();
  failed_streams_[stream] = Failure{epoch, why};
}

Status SessionState::located(const Status& status) const {
  if (status.ok()) return status;
  return {status.code(), place_ + ": " + std::string(status.text().empty() ? errc_name(status.code()) : status.text())};
}

}  // namespace genie::node
