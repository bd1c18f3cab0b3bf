// Device: one device of a node and the thread that runs its work.
//
// Purpose: sessions share a device by posting Work to its bounded queue, from which the worker takes all that has come and serves
//   the sessions by time (FairQueue); stores are touched on the worker thread only. The work of one session runs in the order
//   in which it was posted. How much waits is bounded by what each session may have in flight.
// Thread-safety: all functions may be called from any thread; stop() not from the worker.
// Ownership: a posted Work keeps its session alive until it is done. Nothing that was accepted is lost: each request's
//   sink hears exactly one response, kCancelled after stop().
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "datapath/base/clock.h"
#include "genie/status.h"
#include "src/node/fair_queue.h"
#include "src/node/request.h"
#include "src/node/session_state.h"
#include "src/node/work_queue.h"

namespace genie::node {

struct DeviceOptions {
  std::string kind = "cpu";
  int threads = 0;  // intra-op threads; 0: what the executor finds right for this machine
  size_t queue_capacity = 1024;
  bool busy_polling = false;  // the worker never sleeps
};

struct Work {
  std::shared_ptr<SessionState> session;
  std::unique_ptr<Request> request;  // null: end the session
  Work* next = nullptr;              // of the session, while it waits
};

class Device {
 public:
  // kConfig for a kind that this build does not have.
  static Result<std::unique_ptr<Device>> make(DeviceOptions options, const std::string& node_name);
  ~Device();

  const DeviceOptions& options() const noexcept { return options_; }
  // "node 'a' (cpu)"
  const std::string& place() const noexcept { return place_; }

  // Hands the work over, or leaves it with the caller: kAgain when the queue is full, kCancelled after stop().
  Status try_post(std::unique_ptr<Work>& work);
  // Like try_post, and waits for room: kTimedOut.
  Status post(std::unique_ptr<Work>& work, Deadline deadline);

  // Drops a session's storages on the worker. Never waits for room: there are at most as many of these as sessions.
  Status post_end(std::shared_ptr<SessionState> session);
  bool on_worker() const noexcept { return std::this_thread::get_id() == worker_.get_id(); }

  // Grows with every record that ran; what waits look at.
  std::atomic<uint64_t>& progress() noexcept { return progress_; }
  // Work that was posted and is not done.
  uint64_t pending() const noexcept { return pending_.load(std::memory_order_acquire); }

  // Ends the worker after the piece of work it is at; what is still queued is answered with kCancelled. Idempotent.
  void stop();

 private:
  Device(DeviceOptions options, std::string place);
  void run();
  std::unique_ptr<Work> next_st();
  void take_all_st();
  void take_st(std::unique_ptr<Work> work);
  void perform(Work& work) noexcept;

  const DeviceOptions options_;
  const std::string place_;
  std::atomic<uint64_t> progress_{0};
  std::atomic<uint64_t> pending_{0};
  std::atomic<bool> stopping_{false};
  WorkQueue<Work> queue_;
  FairQueue<Work> waiting_;                  // the worker's
  std::deque<std::unique_ptr<Work>> ended_;  // likewise: ends of sessions
  std::mutex stop_mutex_;
  std::thread worker_;
};

}  // namespace genie::node
