// genie-bench scale, many sessions on one node: what an idle one costs the node, and how evenly busy ones share its device.
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bench/benches.h"
#include "bench/harness/memory.h"
#include "bench/harness/node_process.h"
#include "bench/harness/threads.h"
#include "datapath/base/clock.h"
#include "src/session/link.h"
#include "tests/e2e/template_builder.h"

namespace genie::bench {
namespace {

using session::Link;

[[noreturn]] void fail(const Status& status) { throw std::runtime_error(status.to_string()); }

std::unique_ptr<Link> open(const NodeProcess& node, const std::string& transport) {
  session::LinkOptions options;
  options.transport = transport;
  options.connect_timeout_ms = 60'000;
  Result<std::unique_ptr<Link>> link = Link::open(node.uri(), options);
  if (!link) fail(link.status());
  return std::move(*link);
}

// This process has the other end of every session.
void allow_descriptors() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
}

// -- Idle sessions -----------------------------------------------------------------------------------------------------------

// Bytes that each of `count` sessions adds to the node, those in full that it shares with this process. Some were there before,
// for which it made what it makes once.
double idle_bytes(const std::string& transport, size_t count) {
  NodeProcess node({.transport = transport});
  std::vector<std::unique_ptr<Link>> links;
  const size_t first = count / 10;
  while (links.size() < first) links.push_back(open(node, transport));
  // The connection to the control plane ends by itself after ten seconds.
  const auto settled_bytes = [&] {
    constexpr useconds_t kIdleUs = 13'000'000;
    ::usleep(kIdleUs);
    return static_cast<double>(resident_bytes(node.process()));
  };
  const double before = settled_bytes();
  while (links.size() < first + count) links.push_back(open(node, transport));
  const double after = settled_bytes();
  for (const auto& link : links) {
    if (const Status there = link->check(); !there.ok()) fail(there);
  }
  return (after - before) / static_cast<double>(count);
}

void measure_idle(Harness& harness, const std::string& transport) {
  // Each is a UCX worker with its threads and sockets in this process.
  const size_t count =
      transport == "shm" ? harness.full_or_quick<size_t>(1000, 300) : harness.full_or_quick<size_t>(200, 50);
  const Json params = {{"transport", transport}, {"sessions", count}};
  if (!harness.wants("scale.idle_session_bytes", params)) return;
  constexpr double kMostBytes = 100'000;
  harness
      .row({.name = "scale.idle_session_bytes",
            .params = params,
            .unit = "bytes",
            .target = kMostBytes,
            .target_of = TargetOf::kMedian})
      .ours([&] { return idle_bytes(transport, count); })
      .warmup(0)
      .runs(1)
      .measure();
}

// -- Busy sessions -----------------------------------------------------------------------------------------------------------

// Some 300 us: clients bring more than the node can do, also where they have to share a core.
constexpr uint32_t kRecords = 64;
constexpr int64_t kElements = 32768;

// Keeps `in_flight` equal submissions on their way until it is told to stop.
class Busy {
 public:
  Busy(const NodeProcess& node, const std::string& transport, size_t in_flight)
      : link_(open(node, transport)), in_flight_(in_flight) {
    const std::vector<std::byte> code = test::add_template(kRecords, kElements);
    const Result<uint64_t> id = link_->register_template(code);
    if (!id) fail(id.status());
    template_ = *id;
    session::Submission uploads;
    for (const uint64_t storage : {kSelf, kOther}) {
      auto memory = link_->begin_upload(kElements * sizeof(float));
      if (!memory) fail(memory.status());
      std::memset((*memory)->bytes().data(), 0, (*memory)->bytes().size());
      uploads.uploads.push_back({.storage = {storage, 0}, .memory = std::move(*memory)});
    }
    finish(send(std::move(uploads)));
  }
  void start() {
    worker_ = std::thread([this] {
      try {
        work();
      } catch (const std::exception& error) {
        failure_ = error.what();
      }
    });
  }
  void stop() {
    stopping_.store(true, std::memory_order_relaxed);
    worker_.join();
    if (!failure_.empty()) throw std::runtime_error(failure_);
  }
  uint64_t done() const noexcept { return done_.load(std::memory_order_relaxed); }

 private:
  static constexpr uint64_t kSelf = 1;
  static constexpr uint64_t kOther = 2;

  std::shared_ptr<session::Ticket> send(session::Submission submission) {
    auto ticket = link_->submit(std::move(submission));
    if (!ticket) fail(ticket.status());
    return std::move(*ticket);
  }
  void finish(const std::shared_ptr<session::Ticket>& ticket) {
    if (const Status waited = link_->wait(*ticket); !waited.ok()) fail(waited);
    if (const Status& status = ticket->outcome().status; !status.ok()) fail(status);
  }
  session::Submission next() {
    constexpr uint64_t kBytes = kElements * sizeof(float);
    session::Submission submission;
    submission.template_id = template_;
    submission.slots = {{.id = kSelf, .version_in = version_, .version_out = version_ + 1, .size_bytes = kBytes},
                        {.id = kOther, .version_in = 0, .version_out = 0, .size_bytes = kBytes}};
    ++version_;
    return submission;
  }
  void work() {
    std::deque<std::shared_ptr<session::Ticket>> tickets;
    while (!stopping_.load(std::memory_order_relaxed)) {
      while (tickets.size() < in_flight_) tickets.push_back(send(next()));
      finish(tickets.front());
      tickets.pop_front();
      done_.fetch_add(1, std::memory_order_relaxed);
    }
    for (const auto& ticket : tickets) finish(ticket);
  }

  const std::unique_ptr<Link> link_;
  const size_t in_flight_;
  uint64_t template_ = 0;
  uint32_t version_ = 0;
  std::atomic<uint64_t> done_{0};
  std::atomic<bool> stopping_{false};
  std::string failure_;
  std::thread worker_;
};

// The largest part by which what one session got done in some time differs from the sessions' mean.
double worst_deviation(const std::vector<uint64_t>& done) {
  const double mean =
      static_cast<double>(std::accumulate(done.begin(), done.end(), uint64_t{0})) / static_cast<double>(done.size());
  double worst = 0;
  for (const uint64_t each : done) worst = std::max(worst, std::abs(static_cast<double>(each) - mean));
  return worst / mean;
}

double unfairness(const std::string& transport, bool alike, useconds_t time_us) {
  constexpr size_t kSessions = 64;
  NodeSettings settings{.transport = transport};
  const std::vector<int> cores = usable_cores();
  if (cores.size() >= 2) settings.core = cores[1];
  NodeProcess node(settings);
  std::vector<std::unique_ptr<Busy>> sessions;
  // So many that the node always has work of everybody's, also while a client waits for its core; or some have 8 times as many
  // waiting there as others.
  for (size_t i = 0; i < kSessions; ++i) {
    sessions.push_back(std::make_unique<Busy>(node, transport, alike ? 32 : 16 * (1 + i % 8)));
  }
  for (const auto& session : sessions) session->start();
  ::usleep(time_us / 4);
  std::vector<uint64_t> done;
  for (const auto& session : sessions) done.push_back(session->done());
  ::usleep(time_us);
  for (size_t i = 0; i < kSessions; ++i) done[i] = sessions[i]->done() - done[i];
  for (const auto& session : sessions) session->stop();
  return worst_deviation(done);
}

void measure_fairness(Harness& harness, const std::string& transport) {
  constexpr double kFair = 0.05;
  for (const bool alike : {true, false}) {
    const Json params = {{"transport", transport}, {"sessions", 64}, {"in_flight", alike ? "32" : "16 to 128"}};
    if (!harness.wants("scale.fairness", params)) continue;
    harness
        .row({.name = "scale.fairness",
              .params = params,
              .unit = "of the mean",
              .target = kFair,
              .target_of = TargetOf::kMedian})
        .ours([&] { return unfairness(transport, alike, harness.full_or_quick<useconds_t>(20'000'000, 6'000'000)); })
        .warmup(0)
        .runs(harness.full_or_quick(3, 1))
        .measure();
  }
}

void run_sessions(Harness& harness) {
  allow_descriptors();
  for (const std::string& transport : harness.transports_or({"shm", "ucx"})) measure_idle(harness, transport);
  for (const std::string& transport : harness.transports_or({"shm"})) measure_fairness(harness, transport);
}

const Registration kSessions("scale", run_sessions);

}  // namespace
}  // namespace genie::bench
