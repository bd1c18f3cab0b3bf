// Submissions, completions and waiting of a RemoteCore.
#include "src/session/remote_core.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/base/pause.h"

namespace genie::session {
namespace {

constexpr uint64_t kSliceNs = 100'000'000;  // how often a sleeping one looks at the clock
constexpr size_t kCompletionsPerPoll = 32;

// At least as much as its message takes, and what the node makes of it.
size_t message_bytes_bound(const Submission& submission) noexcept {
  constexpr size_t kFixed = 4096;
  constexpr size_t kEntry = 96;  // an upload, and perhaps its region
  return kFixed + 10 * submission.frees.size() + kEntry * submission.uploads.size() + 32 * submission.slots.size() +
         16 * submission.param_index.size() + kEntry * submission.fetches.size();
}

}  // namespace

RemoteCore::RemoteCore(Setup setup)
    : place_("node '" + setup.node_name + "' at " + setup.uri),
      options_(setup.options),
      in_flight_max_(std::max<uint32_t>(setup.in_flight_max, 1)),
      memory_bytes_(setup.memory_bytes),
      timeout_ns_(setup.options.progress_timeout_ms * 1'000'000),
      transport_(std::move(setup.transport)),
      endpoint_(setup.endpoint),
      completions_(kCompletionsPerPoll) {
  maps_ = transport_->capabilities().maps_remote_memory;
  if (!transport_->capabilities().needs_polling) return;
  call_fd_ = datapath::FileDescriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  attendant_ = std::thread([this] { attend(); });
}

RemoteCore::~RemoteCore() {
  end(Errc::kCancelled);
  if (attendant_.joinable()) attendant_.join();
}

Status RemoteCore::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

Status RemoteCore::timed_out() const {
  return {Errc::kTimedOut,
          place_ + " made no progress for " + std::to_string(options_.progress_timeout_ms) +
              " ms: it is stopped, or one operation takes longer; raise progress_timeout_ms for the latter"};
}

// -- Submissions -------------------------------------------------------------------------------------------------------------

Result<std::shared_ptr<Ticket>> RemoteCore::submit(Submission submission) {
  size_t handed_over_bytes = 0;
  Result<std::shared_ptr<Ticket>> ticket = submit(std::move(submission), handed_over_bytes);
  // The node is at work now: a next step like this one finds its memory ready.
  if (ticket && handed_over_bytes != 0) {
    call_attendant();  // the node fetches them now, whether somebody waits here or not
    prepare_ahead(handed_over_bytes);
  }
  return ticket;
}

Result<std::shared_ptr<Ticket>> RemoteCore::submit(Submission submission, size_t& handed_over_bytes) {
  if (const size_t bytes = message_bytes_bound(submission); bytes > wire::kMaxMessageBytes) {
    return Status(Errc::kOutOfRange, "a submission of about " + std::to_string(bytes) + " bytes; the limit is " +
                                         std::to_string(wire::kMaxMessageBytes) + ": flush more often");
  }
  if (submission.param_index.size() != submission.param_value.size()) {
    return Status(Errc::kInvalidArgument, "a submission with other indices of parameters than values");
  }
  if (submission.fetches.size() > wire::kMaxFetches) {
    return Status(Errc::kOutOfRange, "more than " + std::to_string(wire::kMaxFetches) + " fetches in one submission");
  }
  GENIE_TRY(wait_for([this] {
    return in_flight_.load(std::memory_order_acquire) < in_flight_max_ || ended_.load(std::memory_order_acquire);
  }));
  auto ticket = std::make_shared<RemoteTicket>();
  wire::SubmissionMessage message;
  const Guard guard(*this);
  if (!failure_.ok()) return failure_;
  for (const FetchRequest& fetch : submission.fetches) {
    ticket->wanted_bytes_.push_back(fetch.size);
    message.fetches.push_back({.storage = fetch.storage, .offset = fetch.offset, .size = fetch.size});
  }
  if (!maps_) GENIE_TRY(place_results_locked(*ticket, message));
  if (Status taken = take_uploads_locked(submission, *ticket, message, handed_over_bytes); !taken.ok()) {
    for (const UploadPlace& place : ticket->uploads_) release_upload(place);
    release_places(*ticket);
    return taken;
  }
  message.ticket = next_ticket_++;
  message.stream = submission.stream;
  message.epoch = submission.epoch;
  message.frees = std::move(submission.frees);
  message.template_id = submission.template_id;
  if (submission.template_id != 0) {
    invocations_.encode(submission.template_id,
                        {.slots = std::move(submission.slots),
                         .param_index = std::move(submission.param_index),
                         .param_value = std::move(submission.param_value)},
                        message.invocation);
  }
  message.window_offers = std::exchange(window_offers_, {});
  release_offers();
  message.result_releases = take_releases();
  tickets_.emplace(message.ticket, ticket);
  in_flight_.fetch_add(1, std::memory_order_acq_rel);
  if (Status sent = send_locked(wire::ClientMessage(std::move(message)), true); !sent.ok()) {
    // Parts of it may be on their way: the two sides no longer agree, so the session is over.
    end_locked(sent);
    return sent;
  }
  add(submissions_, 1);
  return std::shared_ptr<Ticket>(std::move(ticket));
}

Status RemoteCore::send_locked(const wire::ClientMessage& message, bool submission) {
  const Result<std::span<const std::byte>> encoded = encoder_.encode(message);
  GENIE_TRY(encoded.status());
  if (submission) add(message_bytes_, encoded->size());
  const size_t piece_bytes = transport_->capabilities().max_send_bytes;
  const Deadline deadline = Deadline::after_ms(options_.progress_timeout_ms);
  size_t sent_bytes = 0;
  while (sent_bytes < encoded->size()) {
    const size_t rest = encoded->size() - sent_bytes;
    const std::span<const std::byte> bytes = encoded->subspan(sent_bytes, std::min(rest, piece_bytes));
    const wire::FragmentTag tag = wire::tag_of(rest, piece_bytes, sent_bytes == 0);
    auto* const copy = new std::vector<std::byte>(bytes.begin(), bytes.end());
    datapath::Buffer piece(
        copy->data(), copy->size(), {},
        [](void* context, std::byte*, size_t) noexcept { delete static_cast<std::vector<std::byte>*>(context); }, copy);
    Status sent = Errc::kAgain;
    while ((sent = transport_->send(endpoint_, piece, static_cast<uint32_t>(tag), {.deadline = deadline})).code() ==
           Errc::kAgain) {
      if (deadline.expired()) return timed_out();
      (void)poll_locked();
      if (!failure_.ok()) return failure_;
    }
    if (!sent.ok()) {
      return {Errc::kDisconnected, place_ + ": the connection was lost (" + sent.to_string() + "): connect again"};
    }
    sent_bytes += bytes.size();
  }
  return {};
}

// -- What the node says ------------------------------------------------------------------------------------------------------

bool RemoteCore::poll_locked() {
  if (!failure_.ok()) return false;
  polls_.fetch_add(1, std::memory_order_relaxed);
  const size_t count = transport_->poll(completions_);
  for (size_t i = 0; i < count; ++i) {
    datapath::Completion completion = std::move(completions_[i]);
    if (!failure_.ok()) continue;
    if (completion.opcode == datapath::Opcode::kReceive) {
      on_message_locked(completion);
    } else if (completion.opcode == datapath::Opcode::kDisconnected) {
      end_locked(Status(Errc::kDisconnected, place_ + " has gone (" + errc_name(completion.result) +
                                                 "): what it held is lost; start it again and connect again"));
    }
  }
  return count != 0;
}

void RemoteCore::on_message_locked(datapath::Completion& completion) {
  last_sign_ns_.store(now_ns(), std::memory_order_relaxed);
  const auto refuse = [&](const Status& why) {
    end_locked(Status(Errc::kProtocol, place_ + " sent nonsense (" + why.to_string() + "): the session is over"));
  };
  const Result<std::span<const std::byte>> whole = incoming_.feed(completion.immediate, completion.buffer.bytes());
  if (!whole) return refuse(whole.status());
  if (whole->empty()) return;
  Result<wire::NodeMessage> message = wire::decode_node_message(*whole);
  if (!message) return refuse(message.status());
  if (auto* done = std::get_if<wire::CompletionMessage>(&*message)) return on_completion_locked(std::move(*done));
  if (const auto* region = std::get_if<wire::ResultRegion>(&*message)) {
    if (const Status bad = on_result_region_locked(*region); !bad.ok()) refuse(bad);
    return;
  }
  if (const auto* answer = std::get_if<wire::Answer>(&*message)) {
    if (const Status bad = on_answer_locked(*answer); !bad.ok()) refuse(bad);
    return;
  }
  if (const auto* farewell = std::get_if<wire::Farewell>(&*message)) {
    end_locked(farewell->status.ok() ? Status(Errc::kDisconnected, place_ + " ended the session") : farewell->status);
  }
}

void RemoteCore::on_completion_locked(wire::CompletionMessage message) {
  const auto found = tickets_.find(message.ticket);
  if (found == tickets_.end()) {
    return end_locked(
        Status(Errc::kProtocol, place_ + " answered a submission that was never made: the session is over"));
  }
  const std::shared_ptr<RemoteTicket> ticket = std::move(found->second);
  tickets_.erase(found);
  in_flight_.fetch_sub(1, std::memory_order_acq_rel);
  if (Status bad = fill_outcome(*ticket, message); !bad.ok()) {
    ticket->outcome_ = {};
    ticket->outcome_.status = bad;
    ticket->outcome_.fetched.resize(ticket->wanted_bytes_.size());
    ticket->outcome_.fetch_status.assign(ticket->wanted_bytes_.size(), bad);
    finish_locked(*ticket);
    if (bad.code() == Errc::kProtocol) end_locked(bad);
    return;
  }
  finish_locked(*ticket);
}

Status RemoteCore::fill_outcome(RemoteTicket& ticket, wire::CompletionMessage& message) {
  Outcome& outcome = ticket.outcome_;
  outcome.status = std::move(message.status);
  outcome.failed_record = message.failed_record;
  outcome.executed_records = message.executed_records;
  outcome.reported = std::move(message.reported);
  add(upload_copied_bytes_, message.upload_copied_bytes);
  // An inline result counts as one pass: the other steps are the message's, not the data's.
  add(fetch_copied_bytes_, message.fetch_copied_bytes);
  if (message.fetched.size() != ticket.wanted_bytes_.size()) {
    return {Errc::kProtocol, place_ + " answered another number of fetches than were asked for"};
  }
  for (size_t i = 0; i < ticket.wanted_bytes_.size(); ++i) {
    const uint64_t size = ticket.wanted_bytes_[i];
    Status status = message.fetched[i].status;
    std::unique_ptr<Fetched> fetched;
    if (status.ok()) {
      const bool placed = !ticket.result_places_.empty() && ticket.result_places_[i].window != nullptr;
      Result<std::unique_ptr<Fetched>> made =
          placed ? make_placed_locked(ticket.result_places_[i]) : make_fetched_locked(message.fetched[i], size);
      if (made) {
        fetched = std::move(*made);
        add(fetches_, 1);
        add(fetch_bytes_, size);
      } else {
        status = made.status();
        if (status.code() == Errc::kProtocol) return status;
        if (outcome.status.ok()) outcome.status = status;
      }
    }
    outcome.fetched.push_back(std::move(fetched));
    outcome.fetch_status.push_back(std::move(status));
  }
  return {};
}

void RemoteCore::finish_locked(RemoteTicket& ticket) {
  for (const UploadPlace& place : ticket.uploads_) release_upload(place);
  ticket.uploads_.clear();
  // Of fetches that failed. A node that was lost may still write: then nothing is put there again.
  if (failure_.ok()) release_places(ticket);
  ticket.done_.store(true, std::memory_order_release);
  notify_waiters();
}

void RemoteCore::end(const Status& why) {
  const Guard guard(*this);
  end_locked(why);
}

void RemoteCore::end_locked(const Status& why) {
  if (!failure_.ok()) return;
  failure_ = why;
  ended_.store(true, std::memory_order_release);
  call_attendant();
  // Mappings stay: results live in them until they and this object go.
  (void)transport_->close(endpoint_);
  for (auto& [number, ticket] : tickets_) {
    ticket->outcome_.status = why;
    ticket->outcome_.fetched.resize(ticket->wanted_bytes_.size());
    ticket->outcome_.fetch_status.assign(ticket->wanted_bytes_.size(), why);
    finish_locked(*ticket);
  }
  tickets_.clear();
  inquiries_.clear();
  in_flight_.store(0, std::memory_order_release);
  notify_waiters();
}

// -- Waiting -----------------------------------------------------------------------------------------------------------------

void RemoteCore::notify_waiters() noexcept {
  // A waiter counts itself, then looks; what it waits for was stored before. See EmbeddedLink's Wakeup.
  if (waiters_.fetch_add(0, std::memory_order_acq_rel) == 0) return;
  { const std::lock_guard lock(turn_mutex_); }
  turn_signal_.notify_all();
}

Status RemoteCore::wait(const RemoteTicket& ticket) {
  return wait_for([&ticket] { return ticket.done(); });
}

void RemoteCore::wait_for_answer(const Inquiry& inquiry, Deadline deadline) {
  (void)wait_for([&] {
    return inquiry.answered.load(std::memory_order_acquire) || deadline.expired() ||
           ended_.load(std::memory_order_acquire);
  });
}

template <typename Predicate>
Status RemoteCore::wait_for(const Predicate& reached) {
  if (reached()) return {};
  const uint64_t began_ns = now_ns();
  while (!reached()) {
    const uint64_t limit_ns = std::max(began_ns, last_sign_ns_.load(std::memory_order_relaxed)) + timeout_ns_;
    const uint64_t now = now_ns();
    if (now >= limit_ns) return timed_out();
    const uint64_t until_ns = std::min(limit_ns, now + kSliceNs);
    {
      std::unique_lock lock(turn_mutex_);
      if (polling_) {
        waiters_.fetch_add(1, std::memory_order_acq_rel);
        turn_signal_.wait_for(lock, std::chrono::nanoseconds(until_ns - now), [&] { return reached() || !polling_; });
        waiters_.fetch_sub(1, std::memory_order_relaxed);
        continue;
      }
      polling_ = true;
    }
    poll_until(reached, began_ns, until_ns);
    {
      const std::lock_guard lock(turn_mutex_);
      polling_ = false;
    }
    turn_signal_.notify_all();
  }
  return {};
}

// The caller, who waits since `began_ns`, has the turn. Returns when `reached`, when the time is over, or when the session has
// ended.
template <typename Predicate>
void RemoteCore::poll_until(const Predicate& reached, uint64_t began_ns, uint64_t until_ns) {
  const Guard guard(*this);
  uint64_t idle_since = began_ns;
  while (!reached() && failure_.ok()) {
    const bool moved = poll_locked();
    const uint64_t now = now_ns();
    if (moved) {
      spin_.learn(now - idle_since);
      idle_since = now;
    }
    if (reached() || now >= until_ns) return;
    if (contenders_.load(std::memory_order_seq_cst) != 0) {
      // Submitting goes first.
      mutex_.unlock();
      while (contenders_.load(std::memory_order_seq_cst) != 0 && now_ns() < until_ns) std::this_thread::yield();
      mutex_.lock();
      continue;
    }
    if (options_.busy_polling) {
      cpu_pause();
      continue;
    }
    if (now - idle_since < spin_.ns()) {
      spin_step(now - idle_since);
      continue;
    }
    sleeping_.store(true, std::memory_order_seq_cst);
    if (contenders_.load(std::memory_order_seq_cst) == 0) transport_->wait(until_ns - now);
    sleeping_.store(false, std::memory_order_seq_cst);
  }
}

void RemoteCore::poll() {
  if (contenders_.load(std::memory_order_relaxed) != 0 || !mutex_.try_lock()) return;  // somebody else is at it
  (void)poll_locked();
  mutex_.unlock();
}

Status RemoteCore::check() {
  const std::lock_guard lock(mutex_);
  if (failure_.ok()) {
    transport_->wait(0);  // hang-ups that a poll would see later
    (void)poll_locked();
  }
  return failure_;
}

LinkCounters RemoteCore::counters() const {
  const auto value = [](const std::atomic<uint64_t>& counter) { return counter.load(std::memory_order_relaxed); };
  LinkCounters out;
  out.templates_registered = value(templates_registered_);
  out.submissions = value(submissions_);
  out.message_bytes = value(message_bytes_);
  out.uploads = value(uploads_);
  out.upload_bytes = value(upload_bytes_);
  out.upload_known_bytes = value(upload_known_bytes_);
  out.upload_copied_bytes = value(upload_copied_bytes_);
  out.upload_regions = value(upload_regions_);
  out.fetches = value(fetches_);
  out.fetch_bytes = value(fetch_bytes_);
  out.fetch_copied_bytes = value(fetch_copied_bytes_);
  return out;
}

}  // namespace genie::session
