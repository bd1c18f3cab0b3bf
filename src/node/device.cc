#include "src/node/device.h"

#include <ctime>
#include <exception>
#include <utility>

#include "datapath/base/log.h"

namespace genie::node {
namespace {

// Of this thread's own time: no session pays for what other processes took of the core while it was served.
uint64_t own_ns() noexcept {
  timespec spent{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent);
  return static_cast<uint64_t>(spent.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(spent.tv_nsec);
}

}  // namespace

Result<std::unique_ptr<Device>> Device::make(DeviceOptions options, const std::string& node_name) {
  if (options.kind != "cpu") {
    return Status(Errc::kConfig, "device '" + options.kind + "' is not compiled into this node: use 'cpu'");
  }
  if (options.threads < 0) return Status(Errc::kConfig, "a device cannot have a negative number of threads");
  if (options.threads == 0) options.threads = executor::default_threads();
  std::string place = "node '" + node_name + "' (" + options.kind + ")";
  return std::unique_ptr<Device>(new Device(std::move(options), std::move(place)));
}

Device::Device(DeviceOptions options, std::string place)
    : options_(std::move(options)),
      place_(std::move(place)),
      queue_(options_.queue_capacity, options_.busy_polling),
      worker_([this] { run(); }) {}

Device::~Device() { stop(); }

Status Device::try_post(std::unique_ptr<Work>& work) {
  pending_.fetch_add(1, std::memory_order_acq_rel);
  if (!stopping_.load(std::memory_order_acquire) && queue_.try_push(work)) return {};
  pending_.fetch_sub(1, std::memory_order_acq_rel);
  if (stopping_.load(std::memory_order_acquire)) return {Errc::kCancelled, place_ + " has stopped"};
  return Errc::kAgain;
}

Status Device::post(std::unique_ptr<Work>& work, Deadline deadline) {
  pending_.fetch_add(1, std::memory_order_acq_rel);
  if (!stopping_.load(std::memory_order_acquire) && queue_.push(work, deadline)) return {};
  pending_.fetch_sub(1, std::memory_order_acq_rel);
  if (stopping_.load(std::memory_order_acquire)) return {Errc::kCancelled, place_ + " has stopped"};
  return {Errc::kTimedOut, place_ + " accepted no work in time: its queue of " +
                               std::to_string(options_.queue_capacity) + " submissions stayed full"};
}

Status Device::post_end(std::shared_ptr<SessionState> session) {
  auto work = std::make_unique<Work>(Work{.session = std::move(session), .request = nullptr});
  pending_.fetch_add(1, std::memory_order_acq_rel);
  if (queue_.push_urgent(work)) return {};
  pending_.fetch_sub(1, std::memory_order_acq_rel);
  return {Errc::kCancelled, place_ + " has stopped"};
}

void Device::stop() {
  const std::lock_guard lock(stop_mutex_);
  stopping_.store(true, std::memory_order_release);
  queue_.close();
  if (worker_.joinable()) worker_.join();
  // A post that raced with close() may still come through. Whoever posts has counted itself first, so this ends.
  while (pending_.load(std::memory_order_acquire) != 0) {
    if (std::unique_ptr<Work> work = queue_.try_pop()) {
      perform(*work);
      work.reset();
      pending_.fetch_sub(1, std::memory_order_acq_rel);
    } else {
      std::this_thread::yield();
    }
  }
}

void Device::run() {
  while (std::unique_ptr<Work> work = next_st()) {
    const bool runs = work->request != nullptr;
    const bool shared = runs && !waiting_.empty();
    const uint64_t began_ns = shared ? own_ns() : now_ns();
    perform(*work);
    const uint64_t spent_ns = (shared ? own_ns() : now_ns()) - began_ns;
    take_all_st();  // who came meanwhile has waited, and goes first
    // Who has the device alone pays for nothing.
    if (runs) waiting_.charge(work->session->service_st(), waiting_.empty() ? 0 : spent_ns);
    work.reset();  // the request's memory and perhaps its session go here, on the worker
    pending_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

// Null once the queue is closed and all is done.
std::unique_ptr<Work> Device::next_st() {
  if (waiting_.empty() && ended_.empty()) {
    std::unique_ptr<Work> work = queue_.pop();
    if (work == nullptr) return nullptr;
    take_st(std::move(work));
  }
  take_all_st();
  if (ended_.empty()) return waiting_.pop();
  std::unique_ptr<Work> work = std::move(ended_.front());
  ended_.pop_front();
  return work;
}

void Device::take_all_st() {
  while (std::unique_ptr<Work> work = queue_.try_pop()) take_st(std::move(work));
}

// The end of a session waits for nobody.
void Device::take_st(std::unique_ptr<Work> work) {
  if (work->request == nullptr) {
    ended_.push_back(std::move(work));
    return;
  }
  FairShare<Work>& share = work->session->service_st();
  waiting_.push(share, std::move(work));
}

void Device::perform(Work& work) noexcept {
  SessionState& session = *work.session;
  try {
    if (work.request == nullptr) {
      session.end_st();
      return;
    }
    if (stopping_.load(std::memory_order_acquire)) session.close();
    Response response = session.run_st(*work.request);
    progress_.fetch_add(1, std::memory_order_relaxed);
    work.request->uploads.clear();  // what was not adopted goes back before anybody may think that it has
    session.leave();
    work.request->sink->deliver(std::move(response));
  } catch (const std::exception& error) {
    GENIE_LOG_ERROR("{}: a submission ended with an exception: {}", place_, error.what());
    if (work.request == nullptr) return;
    Response response;
    response.ticket = work.request->ticket;
    response.status = Status(Errc::kInternal, place_ + ": " + error.what());
    session.return_lent_st(*work.request, response);
    response.fetched.resize(work.request->fetches.size());
    for (FetchResult& fetched : response.fetched) fetched.status = response.status;
    work.request->uploads.clear();
    session.leave();
    work.request->sink->deliver(std::move(response));
  }
}

}  // namespace genie::node
