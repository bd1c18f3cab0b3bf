#include "src/node/data_plane.h"

#include <algorithm>
#include <array>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/base/pause.h"
#include "datapath/base/spin_budget.h"

namespace genie::node {
namespace {

constexpr uint64_t kTendNs = 20'000'000;  // how often it looks after deadlines and signs of life
constexpr uint64_t kIdleSleepNs = 500'000'000;
constexpr uint64_t kBusySleepNs = 2'000'000;  // while something waits for room or for a worker to let go of memory

uint64_t key_of(datapath::EndpointId endpoint) noexcept {
  return (static_cast<uint64_t>(endpoint.generation) << 32) | endpoint.index;
}

}  // namespace

// Brings a worker's response to the poller, and word of the content that a session asked for.
class DataPlane::Sink final : public ResponseSink, public ContentWaiter {
 public:
  Sink(DataPlane& plane, std::weak_ptr<RemoteSession> session) : plane_(plane), session_(std::move(session)) {}
  void deliver(Response response) noexcept override {
    if (auto session = session_.lock()) {
      plane_.post({.session = std::move(session), .response = std::make_unique<Response>(std::move(response))});
    }
  }
  void on_settled(uint64_t question) noexcept override {
    if (auto session = session_.lock()) plane_.post({.session = std::move(session), .question = question});
  }

 private:
  DataPlane& plane_;
  const std::weak_ptr<RemoteSession> session_;
};

Result<std::unique_ptr<DataPlane>> DataPlane::start(const DataPlaneOptions& options, Node& node, SessionTable& table) {
  std::unique_ptr<DataPlane> plane(new DataPlane(options, node, table));
  datapath::BackendOptions backend = options.backend;
  backend.towards = options.listen;
  Result<std::unique_ptr<datapath::Transport>> transport = datapath::make_backend(options.transport, backend);
  GENIE_TRY(transport.status());
  plane->transport_ = std::move(*transport);
  GENIE_TRY(plane->transport_->listen(options.listen));
  plane->address_ = plane->transport_->address();
  plane->poller_ = std::thread([raw = plane.get()] { raw->run(); });
  return plane;
}

DataPlane::~DataPlane() {
  stop_polling();
  end_sessions();
}

void DataPlane::start_draining() {
  draining_.store(true, std::memory_order_release);
  transport_->wake();
}

void DataPlane::stop_polling() {
  stopping_.store(true, std::memory_order_release);
  if (transport_ != nullptr) transport_->wake();
  if (poller_.joinable()) poller_.join();
}

void DataPlane::end_sessions() {
  if (transport_ == nullptr) return;
  for (const auto& [key, session] : by_endpoint_) (void)transport_->close(session->endpoint());
  by_endpoint_.clear();
  for (const auto& session : live_) {
    session->begin_end();
    (void)session->pump(*transport_);
  }
  live_.clear();
  sinks_.clear();
  inbox_.clear();
  transport_.reset();
}

void DataPlane::post(Event event) {
  {
    const std::lock_guard lock(inbox_mutex_);
    inbox_.push_back(std::move(event));
    inbox_count_.store(inbox_.size(), std::memory_order_release);
  }
  // The poller counts itself as sleeping, then looks at the inbox; we fill the inbox, then look whether it sleeps.
  if (sleeping_.fetch_add(0, std::memory_order_acq_rel) != 0) transport_->wake();
}

void DataPlane::run() {
  std::array<datapath::Completion, 64> completions;
  SpinBudget spin;
  uint64_t idle_since = now_ns();
  bool idle = false;
  bool clients_turn = false;  // nothing is in flight: who spins now waits for a program's next step, and for no worker
  while (!stopping_.load(std::memory_order_acquire)) {
    const size_t count = transport_->poll(completions);
    for (size_t i = 0; i < count; ++i) {
      on_completion(completions[i]);
      completions[i] = {};
    }
    const size_t events = take_inbox();
    const bool moved = pump_sessions();
    const uint64_t now = now_ns();
    if (now >= next_tend_ns_) {
      tend_sessions();
      next_tend_ns_ = now + kTendNs;
    }
    if (count != 0 || events != 0 || moved) {
      if (idle && clients_turn) spin.learn(now - idle_since);
      idle_since = now;
      idle = false;
      continue;
    }
    if (!std::exchange(idle, true)) clients_turn = nothing_in_flight();
    if (options_.busy_polling && !live_.empty()) {
      cpu_pause();
    } else if (now - idle_since < (clients_turn ? spin.ns() : SpinBudget::kLeastNs)) {
      spin_step(now - idle_since);
    } else {
      sleep();
    }
  }
}

bool DataPlane::nothing_in_flight() const {
  return std::ranges::all_of(live_, [](const auto& session) { return session->state()->in_flight() == 0; });
}

void DataPlane::sleep() {
  uint64_t timeout_ns = kIdleSleepNs;
  for (const auto& session : live_) {
    if (session->state()->in_flight() != 0 || session->ending()) timeout_ns = std::min(timeout_ns, kTendNs);
    if (session->wants_pump()) timeout_ns = std::min(timeout_ns, kBusySleepNs);
  }
  sleeping_.fetch_add(1, std::memory_order_acq_rel);
  if (inbox_count_.load(std::memory_order_acquire) == 0 && !stopping_.load(std::memory_order_acquire)) {
    transport_->wait(timeout_ns);
  }
  sleeping_.fetch_sub(1, std::memory_order_relaxed);
}

void DataPlane::on_completion(datapath::Completion& completion) {
  switch (completion.opcode) {
    case datapath::Opcode::kConnected: return on_connected(completion.endpoint);
    case datapath::Opcode::kReceive: return on_message(completion);
    case datapath::Opcode::kDisconnected:
      if (auto session = session_of(completion.endpoint)) {
        by_endpoint_.erase(key_of(completion.endpoint));
        session->detach();
        end_session(session, Status(Errc::kDisconnected, "the client has gone"), false);
      }
      return;
    default: return;  // our own sends: dropping the completion frees the piece
  }
}

void DataPlane::on_connected(datapath::EndpointId endpoint) {
  const std::span<const std::byte> token = transport_->endpoint_token(endpoint);
  const std::shared_ptr<RemoteSession> match =
      table_.claim({reinterpret_cast<const char*>(token.data()), token.size()}, *this);
  if (match == nullptr) {
    GENIE_LOG_WARN("node '{}': refused a data connection without a session", node_name());
    (void)transport_->close(endpoint);
    return;
  }
  const auto sink = std::make_shared<Sink>(*this, match);
  match->attach(endpoint, sink);
  match->say_welcome();
  by_endpoint_.emplace(key_of(endpoint), match);
  live_.push_back(match);
  sinks_.emplace(match->state()->number(), sink);
}

void DataPlane::on_message(datapath::Completion& completion) {
  const std::shared_ptr<RemoteSession> session = session_of(completion.endpoint);
  if (session == nullptr || session->ending()) return;
  const Status handled = session->handle(*transport_, completion.immediate, completion.buffer.bytes(),
                                         sinks_.at(session->state()->number()));
  if (handled.ok()) return;
  GENIE_LOG_WARN("node '{}': session {} broke the protocol and is ended: {}", node_name(), session->state()->number(),
                 handled.to_string());
  end_session(session,
              Status(Errc::kProtocol, "node '" + node_name() + "' ended the session: " + std::string(handled.text())),
              true);
}

std::shared_ptr<RemoteSession> DataPlane::session_of(datapath::EndpointId endpoint) {
  const auto found = by_endpoint_.find(key_of(endpoint));
  return found == by_endpoint_.end() ? nullptr : found->second;
}

size_t DataPlane::take_inbox() {
  if (inbox_count_.load(std::memory_order_acquire) == 0) return 0;
  {
    const std::lock_guard lock(inbox_mutex_);
    taken_.swap(inbox_);
    inbox_count_.store(0, std::memory_order_release);
  }
  for (Event& event : taken_) {
    if (event.response != nullptr) {
      event.session->respond(*transport_, std::move(*event.response));
    } else if (event.question) {
      event.session->answer(*event.question);
    } else {
      end_session(event.session, Status(Errc::kCancelled, "closed by the client"), false);
    }
  }
  const size_t count = taken_.size();
  taken_.clear();
  return count;
}

bool DataPlane::pump_sessions() {
  bool moved = false;
  for (const auto& session : live_) {
    if (session->wants_pump()) moved |= session->pump(*transport_);
  }
  return moved;
}

// Deadlines, signs of life, draining, and the end of what has ended.
void DataPlane::tend_sessions() {
  const uint64_t now = now_ns();
  const bool draining = draining_.load(std::memory_order_acquire);
  tend_unclaimed(now, draining);
  const std::vector<std::shared_ptr<RemoteSession>> sessions = live_;
  for (const auto& session : sessions) {
    session->tick(now);
    session->drop_idle_results(now);
    if (session->ending()) {
      if (!session->gone()) continue;
      sinks_.erase(session->state()->number());
      std::erase(live_, session);
      table_.remove(session->options().id);
    } else if (draining && session->flushed()) {
      end_session(
          session,
          Status(Errc::kDisconnected, "node '" + node_name() + "' is shutting down: connect to another node, or later"),
          true);
    }
  }
}

// Sessions to which no client has connected are everybody's: they have nothing but their state.
void DataPlane::tend_unclaimed(uint64_t now_ns, bool draining) {
  for (const auto& session : table_.take_late(now_ns, draining)) {
    GENIE_LOG_INFO("session {} ends: its client did not connect to a data endpoint", session->state()->number());
    node_.close_session(session->state());
  }
}

void DataPlane::end_session(const std::shared_ptr<RemoteSession>& session, const Status& why, bool tell) {
  if (session->ending()) return;
  GENIE_LOG_INFO("session {} ends: {}", session->state()->number(), why.to_string());
  if (tell) {
    session->say_farewell(why);
    (void)session->pump(*transport_);
  }
  session->begin_end();
  node_.close_session(session->state());
  if (session->endpoint().valid()) {
    by_endpoint_.erase(key_of(session->endpoint()));
    (void)transport_->close(session->endpoint());
    session->detach();
  }
  next_tend_ns_ = 0;
}

}  // namespace genie::node
