#include "frontend/capture/session_core.h"

#include <c10/util/ThreadLocalDebugInfo.h>
#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <span>

#include "datapath/base/clock.h"
#include "datapath/base/differences.h"
#include "datapath/base/log.h"
#include "frontend/capture/context.h"
#include "frontend/capture/env.h"
#include "frontend/capture/fragment_builder.h"
#include "frontend/capture/journal.h"
#include "frontend/capture/registry.h"
#include "frontend/capture/source.h"
#include "genie/shapes.h"

namespace genie::frontend {
namespace {

constexpr size_t kKeptFailures = 16;

// Which stream a thread appends to, per session. Autograd hands ThreadLocalDebugInfo from the thread that called backward to its
// workers, so that their records land in the caller's stream.
struct StreamTag final : c10::DebugInfoBase {
  ~StreamTag() override {
    for (auto& stream : streams) {
      // The thread is gone; another may go on with its stream.
      if (Stream* mine = stream.load(std::memory_order_acquire)) mine->abandoned.store(true, std::memory_order_release);
    }
  }
  std::array<std::atomic<Stream*>, kMaxDevices> streams{};
};

constexpr std::string_view kTagName = "GENIE_STREAM";
constexpr c10::DebugInfoKind kTagKind(&kTagName);

constexpr uint64_t kNumberBlock = 1024;

// Numbers for storages that a thread may give out.
struct NumberBlock {
  const SessionCore* core = nullptr;
  uint64_t next = 0;
  uint64_t end = 0;
};
[[gnu::tls_model("initial-exec")]] thread_local NumberBlock number_block;

}  // namespace

const char* flush_reason_name(FlushReason reason) {
  switch (reason) {
    case FlushReason::kValue: return "value";
    case FlushReason::kShape: return "shape";
    case FlushReason::kLimit: return "limit";
    case FlushReason::kConflict: return "conflict";
    case FlushReason::kSynchronize: return "synchronize";
    case FlushReason::kEager: return "eager";
    case FlushReason::kCount: break;
  }
  return "unknown";
}

namespace {

std::atomic<bool>& lazy_flag() {
  static std::atomic<bool> flag{env_switch("GENIE_LAZY", true)};
  return flag;
}

}  // namespace

void set_lazy(bool lazy) { lazy_flag().store(lazy, std::memory_order_relaxed); }
bool is_lazy() { return lazy_flag().load(std::memory_order_relaxed); }

namespace {

// Set in a child that was forked after a session was opened: the threads and rings of its sessions stayed with the parent.
std::atomic<bool> forked_away{false};

}  // namespace

Status check_fork() {
  if (!forked_away.load(std::memory_order_relaxed)) [[likely]]
    return {};
  return {Errc::kUnsupported,
          "this process was forked from one that had opened a session, which only the parent can go on with: start "
          "workers before the first use of the device, or with multiprocessing's \"spawn\""};
}

namespace {

Status watch_for_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] {
    forked_away.store(true);
    leave_captures_to_parent();
  });
  (void)registered;
  return check_fork();
}

}  // namespace

Result<std::shared_ptr<SessionCore>> SessionCore::connect(std::string_view uri, const session::LinkOptions& options) {
  GENIE_TRY(watch_for_forks());
  auto link = session::Link::open(uri, options);
  if (!link.ok()) return link.status();
  return std::shared_ptr<SessionCore>(new SessionCore(std::move(*link), CaptureLimits{}));
}

SessionCore::~SessionCore() { close(); }

StorageState* SessionCore::new_storage(uint64_t size_bytes) {
  // Numbers are taken in blocks, so that threads do not meet at one counter.
  NumberBlock& block = number_block;
  if (block.core != this || block.next == block.end) {
    block.core = this;
    block.next = next_storage_.fetch_add(kNumberBlock, std::memory_order_relaxed);
    block.end = block.next + kNumberBlock;
  }
  auto* state = new StorageState(this, block.next++);
  state->size_bytes = size_bytes;
  return state;
}

StorageState* SessionCore::new_generator() {
  // Those below are the devices' own.
  constexpr uint64_t kFirst = session::kGeneratorIds + kMaxDevices;
  const std::lock_guard<std::mutex> guard(generators_mutex_);
  uint64_t id = kFirst + next_generator_;
  if (free_generators_.empty()) {
    ++next_generator_;
  } else {
    id = free_generators_.back();
    free_generators_.pop_back();
  }
  auto* state = new StorageState(this, id);
  state->on_node = true;
  return state;
}

void SessionCore::reuse_generators(const std::vector<uint64_t>& freed) {
  const std::lock_guard<std::mutex> guard(generators_mutex_);
  free_generators_.insert(free_generators_.end(), freed.begin(), freed.end());
}

Stream& SessionCore::current_stream() {
  auto* tag = static_cast<StreamTag*>(c10::ThreadLocalDebugInfo::get(kTagKind));
  if (tag == nullptr) {
    auto fresh = std::make_shared<StreamTag>();
    tag = fresh.get();
    c10::ThreadLocalDebugInfo::_push(kTagKind, std::move(fresh));
  }
  auto& mine = tag->streams[static_cast<size_t>(first_device_)];
  // A session that was closed may have left its stream at our index.
  if (Stream* stream = mine.load(std::memory_order_acquire); stream != nullptr && stream->owner == this) return *stream;
  Stream& stream = take_stream(mine);
  if (const auto journal = thread_journal()) journal->attach(stream);
  return stream;
}

Stream& SessionCore::take_stream(std::atomic<Stream*>& mine) {
  const std::lock_guard<std::mutex> guard(streams_mutex_);
  if (Stream* stream = mine.load(std::memory_order_acquire); stream != nullptr && stream->owner == this) return *stream;
  for (auto& stream : streams_) {
    if (!stream->abandoned.exchange(false, std::memory_order_acq_rel)) continue;
    mine.store(stream.get(), std::memory_order_release);
    return *stream;
  }
  streams_.push_back(std::make_unique<Stream>(this, static_cast<uint32_t>(streams_.size())));
  streams_.back()->begin_segment();
  mine.store(streams_.back().get(), std::memory_order_release);
  return *streams_.back();
}

std::vector<Stream*> thread_streams() {
  std::vector<Stream*> out;
  auto* tag = static_cast<StreamTag*>(c10::ThreadLocalDebugInfo::get(kTagKind));
  if (tag == nullptr) return out;
  for (const auto& stream : tag->streams) {
    if (Stream* mine = stream.load(std::memory_order_acquire)) out.push_back(mine);
  }
  return out;
}

std::vector<Stream*> SessionCore::streams() {
  const std::lock_guard<std::mutex> guard(streams_mutex_);
  std::vector<Stream*> out;
  for (auto& stream : streams_) out.push_back(stream.get());
  return out;
}

void SessionCore::order_touch(Stream& stream, StorageState& state, bool write) {
  const uint32_t mine = stream.open_number.load(std::memory_order_relaxed);
  const uint32_t writer = state.writer.load(std::memory_order_acquire);
  if (writer != 0 && writer != mine) flush_segment(writer, stream);
  const uint32_t reader = state.reader.load(std::memory_order_acquire);
  if (reader == 0 || reader == mine) {
    if (!write || !state.many_readers.load(std::memory_order_acquire)) return;
  }
  if (!write) {
    state.many_readers.store(true, std::memory_order_release);
    return;
  }
  // Readers in other streams come before this write.
  for (Stream* other : streams()) {
    if (other != &stream) flush(*other, FlushReason::kConflict);
  }
}

void SessionCore::flush_segment(uint32_t number, Stream& except) {
  for (Stream* other : streams()) {
    if (other != &except && other->open_number.load(std::memory_order_acquire) == number) {
      flush(*other, FlushReason::kConflict);
      return;
    }
  }
}

// The debug mode that trusts no fingerprint: what was found by it is what this segment would have been registered as.
Status check_template(FragmentBuilder& builder, const Segment& segment, const KnownTemplate& found) {
  if (found.serialized.empty() || builder.serialize(segment, found.defaults) == found.serialized) return {};
  return {Errc::kInternal, "template " + std::to_string(found.id) +
                               " was found for other operators than those it was made of: please report this program"};
}

// One flush from the open segment of a stream to a submission on its way.
class Flush {
 public:
  Flush(SessionCore& core, Stream& stream) : core_(core), stream_(stream) {}

  std::shared_ptr<session::Ticket> run(FlushReason reason, const Wanted& wanted) {
    const uint64_t began_ns = is_timing() ? now_ns() : 0;
    plan_ = &core_.builder_.plan(stream_.open);
    const bool any = !plan_->empty();
    core_.counters_.pruned.fetch_add(plan_->pruned, std::memory_order_relaxed);
    if (!stream_.open.records.empty()) {
      core_.counters_.flushes[static_cast<size_t>(reason)].fetch_add(1, std::memory_order_relaxed);
    }
    flight_.stream = &stream_;
    flight_.epoch = stream_.epoch;
    submission_.stream = stream_.number;
    submission_.epoch = stream_.epoch;
    Status status = any ? bind_template() : Status();
    // Nothing is taken along before the template is there: uploads and frees then go with a later flush.
    if (status.ok()) {
      take_uploads();
      submission_.frees = core_.take_frees();
      std::ranges::copy_if(submission_.frees, std::back_inserter(freed_generators_),
                           [](uint64_t id) { return id >= session::kGeneratorIds; });
      if (any) bind_slots();
    }
    if (status.ok() && wanted.state != nullptr) {
      submission_.fetches.push_back({{wanted.state->id, wanted.state->version}, wanted.offset, wanted.size});
    }
    std::shared_ptr<session::Ticket> ticket;
    const bool worth = any || wanted.state != nullptr || !submission_.uploads.empty() || !submission_.frees.empty();
    if (status.ok() && worth) {
      auto sent = core_.link_->submit(std::move(submission_));
      if (sent.ok()) {
        ticket = flight_.ticket = *sent;
        if (!freed_generators_.empty()) core_.reuse_generators(freed_generators_);
      } else {
        status = sent.status();
      }
    }
    if (!status.ok()) poison_all(status);
    close_segment();
    if (began_ns != 0) share_time(now_ns() - began_ns);
    if (ticket != nullptr) {
      const std::lock_guard<std::mutex> guard(core_.flights_mutex_);
      core_.flights_.push_back(std::move(flight_));
    }
    if (!status.ok()) throw Error(status);
    return ticket;
  }

 private:
  // Snapshots whose tensor died unread never travel.
  void take_uploads() {
    for (PendingUpload& upload : stream_.uploads) {
      StorageState* state = upload.state.get();
      const uint64_t place = state->place.load(std::memory_order_relaxed);
      const bool placed = static_cast<uint32_t>(place >> 32) == stream_.open.number;
      const bool used = !placed || plan_->slot_used[static_cast<uint32_t>(place)];
      if (!used && state->handle_gone.load(std::memory_order_acquire)) {
        state->on_node = false;
        continue;
      }
      // Held by the open segment and by the upload alone: nobody can name it once these are gone.
      const bool transient = state->handle_gone.load(std::memory_order_acquire) &&
                             state->references.load(std::memory_order_acquire) == (placed ? 2 : 1);
      submission_.uploads.push_back({{state->id, state->version}, std::move(upload.memory), transient});
      sent_.push_back(StateRef(state));
    }
    stream_.uploads.clear();
    stream_.upload_bytes = 0;
  }

  Status bind_template() {
    TemplateCache& known = core_.templates_;
    const KnownTemplate* found = known.find(plan_->key);
    if (found == nullptr) {
      core_.counters_.template_misses.fetch_add(1, std::memory_order_relaxed);
      std::vector<int64_t> numbers = plan_->numbers_of(stream_.open);
      std::vector<std::byte> serialized = core_.builder_.serialize(stream_.open, numbers);
      const std::vector<uint64_t>& forgotten = known.make_room(serialized.size());
      GENIE_TRY(core_.await_unused(forgotten));
      const auto registered = core_.link_->register_template(serialized, forgotten);
      GENIE_TRY(registered.status());
      core_.counters_.templates_forgotten.store(known.forgotten(), std::memory_order_relaxed);
      KnownTemplate made{.id = *registered, .defaults = std::move(numbers), .bytes = serialized.size()};
      if (is_checking_shapes()) made.serialized = std::move(serialized);
      found = known.insert(plan_->key, std::move(made));
    } else {
      GENIE_TRY(check_template(core_.builder_, stream_.open, *found));
      core_.counters_.template_hits.fetch_add(1, std::memory_order_relaxed);
    }
    submission_.template_id = flight_.template_id = found->id;
    uint32_t at = 0;
    for (const FragmentPlan::Range& range : plan_->params) {
      send_changes({stream_.open.params.data() + range.begin, range.end - range.begin}, found->defaults.data() + at,
                   at);
      at += range.end - range.begin;
    }
    return {};
  }

  // The numbers that differ from the template's, of which `first` is the number of the first.
  void send_changes(std::span<const int64_t> numbers, const int64_t* defaults, uint32_t first) {
    const auto* const now = reinterpret_cast<const uint64_t*>(numbers.data());
    for_each_difference(now, reinterpret_cast<const uint64_t*>(defaults), numbers.size(), [&](size_t at) {
      submission_.param_index.push_back(first + static_cast<uint32_t>(at));
      submission_.param_value.push_back(numbers[at]);
    });
  }

  void bind_slots() {
    submission_.slots.reserve(plan_->bound.size());
    for (const auto& bound : plan_->bound) {
      StorageState* state = stream_.open.slots[bound.segment_slot].state;
      session::SlotBinding binding;
      binding.id = state->id;
      binding.version_in = state->version;
      if (bound.written) ++state->version;
      binding.version_out = state->version;
      binding.size_bytes = state->size_bytes;
      submission_.slots.push_back(binding);
      if (bound.created) state->on_node = true;
      if (bound.written) flight_.writes.push_back({bound.last_writer, StateRef(state)});
    }
    for (const auto& [op, captured, executed] : plan_->counts)
      op->executed.fetch_add(executed, std::memory_order_relaxed);
    if (stream_.open.sources.empty()) return;
    for (const uint32_t record : plan_->live) flight_.sources.push_back(stream_.open.source_of(record));
  }

  void poison_all(const Status& why) {
    auto shared = std::make_shared<const Status>(why);
    for (const auto& bound : plan_->bound) {
      if (bound.written) poison(*stream_.open.slots[bound.segment_slot].state, shared);
    }
    for (const StateRef& upload : sent_) poison(*upload.get(), shared);
  }

  // The segment's storages are no longer pending; those that nobody holds are freed.
  void close_segment() {
    if (stream_.journal != nullptr) stream_.journal->collect(stream_);
    const uint32_t number = stream_.open.number;
    for (const SlotEntry& slot : stream_.open.slots) {
      StorageState& state = *slot.state;
      // Most are intermediate results that only this segment still holds: nobody will ask who wrote them.
      if (!state.is_only_reference()) {
        forget(state.writer, number);
        forget(state.reader, number);
      }
      state.release();
    }
    for (const auto& [op, captured, executed] : plan_->counts)
      op->captured.fetch_add(captured, std::memory_order_relaxed);
    stream_.open.generators.clear();
    stream_.shared_slots.clear();
    std::swap(stream_.last, stream_.open);
    stream_.begin_segment();
  }

  // Unless another segment has taken its place.
  static void forget(std::atomic<uint32_t>& segment, uint32_t number) {
    if (segment.load(std::memory_order_relaxed) != number) return;
    segment.compare_exchange_strong(number, 0, std::memory_order_acq_rel);
  }

  // Among the operators that are sent, evenly. The segment is closed.
  void share_time(uint64_t ns) {
    const auto& sent = plan_->live;
    for (size_t i = 0; i < sent.size(); ++i) {
      const uint64_t share = ns * (i + 1) / sent.size() - ns * i / sent.size();
      stream_.last.records[sent[i]].op->times.add(Phase::kPlan, share);
    }
  }

  SessionCore& core_;
  Stream& stream_;
  const FragmentPlan* plan_ = nullptr;  // nobody else plans while this flush holds the lock
  session::Submission submission_;
  InFlight flight_;
  std::vector<StateRef> sent_;  // uploads that the submission carries
  std::vector<uint64_t> freed_generators_;
};

std::shared_ptr<session::Ticket> SessionCore::flush(Stream& stream, FlushReason reason, const Wanted& wanted,
                                                    const std::function<void()>& last_record) {
  if (const Status forked = check_fork(); !forked.ok()) throw Error(forked);
  if (closed()) throw Error(Status(Errc::kDisconnected, "the session is closed: connect again"));
  collect();
  const std::lock_guard<std::mutex> one_at_a_time(flush_mutex_);
  const std::lock_guard<SpinLock> guard(stream.lock);
  if (last_record) last_record();
  const bool pending =
      wanted.state == nullptr || wanted.state->writer.load(std::memory_order_acquire) == stream.open.number;
  if (!pending) {
    // The bytes are there already: what the stream has pending need not be cut for them.
    session::Submission only_fetch;
    only_fetch.stream = stream.number;
    only_fetch.epoch = stream.epoch;
    only_fetch.fetches.push_back({{wanted.state->id, wanted.state->version}, wanted.offset, wanted.size});
    auto sent = link_->submit(std::move(only_fetch));
    if (!sent.ok()) throw Error(sent.status());
    return *sent;
  }
  return Flush(*this, stream).run(reason, wanted);
}

void SessionCore::wait(session::Ticket& ticket) {
  const Status status = link_->wait(ticket);
  collect();
  if (!status.ok()) {
    fail_everything(status);
    throw Error(status);
  }
}

void SessionCore::collect() {
  std::vector<std::pair<InFlight, Status>> done;
  {
    const std::lock_guard<std::mutex> guard(flights_mutex_);
    while (!flights_.empty() && flights_.front().ticket->done()) {
      Status why = trace_failure(flights_.front());
      done.emplace_back(std::move(flights_.front()), std::move(why));
      flights_.pop_front();
    }
  }
  for (auto& [flight, why] : done) {
    const session::Outcome& outcome = flight.ticket->outcome();
    counters_.executed.fetch_add(outcome.executed_records, std::memory_order_relaxed);
    // A fetch may fail although what was to run did run: then nothing is lost.
    const bool ran = outcome.failed_record < 0 && outcome.executed_records > 0;
    if (!outcome.status.ok() && !ran) fail_writes(flight, outcome, why);
  }
}

// With the lock on the flights.
Status SessionCore::trace_failure(const InFlight& flight) {
  const session::Outcome& outcome = flight.ticket->outcome();
  const auto record = static_cast<size_t>(outcome.failed_record);
  if (outcome.status.ok() || outcome.failed_record < 0 || record >= flight.sources.size()) return outcome.status;
  const SourceLine* source = flight.sources[record];
  if (source == nullptr) return outcome.status;
  Status traced(outcome.status.code(), std::string(outcome.status.text()) + to_text(*source));
  traced_failures_.emplace_back(flight.ticket, traced);
  if (traced_failures_.size() > kKeptFailures) traced_failures_.pop_front();
  return traced;
}

Status SessionCore::failure_of(session::Ticket& ticket) {
  const std::lock_guard<std::mutex> guard(flights_mutex_);
  for (const auto& [failed, why] : traced_failures_) {
    if (failed.get() == &ticket) return why;
  }
  return ticket.outcome().status;
}

void poison(StorageState& state, const std::shared_ptr<const Status>& why) {
  if (state.poisoning.exchange(true, std::memory_order_acq_rel)) return;
  state.error = why;
  state.poisoned.store(true, std::memory_order_release);
}

void SessionCore::fail_writes(InFlight& flight, const session::Outcome& outcome, const Status& why) {
  const auto shared = std::make_shared<const Status>(why);
  for (const auto& write : flight.writes) {
    if (static_cast<int64_t>(write.last_record) >= outcome.failed_record) poison(*write.state.get(), shared);
  }
  const std::lock_guard<std::mutex> guard(flights_mutex_);
  if (flight.stream->epoch == flight.epoch) ++flight.stream->epoch;
  failures_.push_back(why.to_string());
  if (failures_.size() > kKeptFailures) failures_.pop_front();
  if (unseen_failure_.ok()) unseen_failure_ = why;
}

Status SessionCore::await_unused(const std::vector<uint64_t>& templates) {
  if (templates.empty()) return {};
  std::vector<std::shared_ptr<session::Ticket>> users;
  {
    const std::lock_guard<std::mutex> guard(flights_mutex_);
    for (const InFlight& flight : flights_) {
      if (std::ranges::find(templates, flight.template_id) != templates.end()) users.push_back(flight.ticket);
    }
  }
  for (const auto& ticket : users) GENIE_TRY(link_->wait(*ticket));
  return {};
}

// The link is gone: nothing in flight will ever land.
void SessionCore::fail_everything(const Status& status) {
  std::deque<InFlight> lost;
  {
    const std::lock_guard<std::mutex> guard(flights_mutex_);
    lost.swap(flights_);
    failures_.push_back(status.to_string());
    if (failures_.size() > kKeptFailures) failures_.pop_front();
  }
  auto why = std::make_shared<const Status>(status);
  for (InFlight& flight : lost) {
    for (const auto& write : flight.writes) poison(*write.state.get(), why);
  }
}

void SessionCore::synchronize() {
  for (Stream* stream : streams()) flush(*stream, FlushReason::kSynchronize);
  drain();
  Status failure;
  {
    const std::lock_guard<std::mutex> guard(flights_mutex_);
    failure = std::exchange(unseen_failure_, Status());
  }
  if (!failure.ok()) throw Error(failure);
}

void SessionCore::drain() {
  while (true) {
    std::shared_ptr<session::Ticket> last;
    {
      const std::lock_guard<std::mutex> guard(flights_mutex_);
      if (flights_.empty()) return;
      last = flights_.back().ticket;
    }
    wait(*last);
  }
}

void SessionCore::storage_gone(StorageState* state) noexcept {
  if (!state->on_node || closed()) {
    delete state;
    return;
  }
  state->next_free = to_free_.load(std::memory_order_relaxed);
  while (
      !to_free_.compare_exchange_weak(state->next_free, state, std::memory_order_release, std::memory_order_relaxed)) {
  }
}

void StorageState::last_reference_gone() noexcept { session->storage_gone(this); }

std::vector<uint64_t> SessionCore::take_frees() {
  std::vector<uint64_t> ids;
  StorageState* state = to_free_.exchange(nullptr, std::memory_order_acquire);
  while (state != nullptr) {
    StorageState* next = state->next_free;
    ids.push_back(state->id);
    delete state;
    state = next;
  }
  return ids;
}

void SessionCore::close() {
  if (closed_.exchange(true, std::memory_order_acq_rel)) return;
  if (!check_fork().ok()) return;  // the session is the parent's
  fail_everything(Status(Errc::kCancelled, "the session was closed"));
  link_->close();
}

void SessionCore::failure_seen(const Status& told) {
  const std::lock_guard<std::mutex> guard(flights_mutex_);
  if (told.code() == unseen_failure_.code() && told.text() == unseen_failure_.text()) unseen_failure_ = Status();
}

std::vector<std::string> SessionCore::last_failures() {
  const std::lock_guard<std::mutex> guard(flights_mutex_);
  return {failures_.begin(), failures_.end()};
}

}  // namespace genie::frontend
