// SessionState: one session on one device of a node: its templates, its storages and which of its streams failed.
//
// Purpose: carries out one Request at a time against the session's executor::Store.
// Thread-safety: functions that end in _st belong to the device's worker; everything else may be called from any thread.
// Ownership: shared by the node's table and by the work in flight; the store dies on the worker (end_st).
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "datapath/base/clock.h"
#include "genie/status.h"
#include "src/executor/executor.h"
#include "src/node/fair_queue.h"
#include "src/node/request.h"

namespace genie::node {

struct Work;

struct SessionLimits {
  uint64_t memory_bytes = UINT64_MAX;  // of all storages
  size_t templates = 4096;
  uint64_t template_bytes = 256ULL << 20;  // of all templates, serialized
  uint64_t result_bytes = 1ULL << 30;      // of results that a client in another process keeps where the node made them
  uint32_t in_flight = 256;                // submissions accepted and not yet answered
  executor::Trust trust = executor::Trust::kLibraries;
};

class SessionState {
 public:
  SessionState(uint64_t number, std::string place, int threads, SessionLimits limits, std::atomic<uint64_t>* progress,
               ContentAccess content = {});

  uint64_t number() const noexcept { return number_; }
  const SessionLimits& limits() const noexcept { return limits_; }
  const ContentAccess& content() const noexcept { return content_; }

  // Drops the templates of `forget` (ids that nobody has are ignored), then compiles on the calling thread.
  // kQuotaExceeded, or what compile() says.
  Result<uint64_t> add_template(std::span<const std::byte> serialized, std::span<const uint64_t> forget = {});
  size_t template_count() const;

  // Takes one place among the submissions in flight; false when all are taken. leave() gives it back, once nothing that
  // the submission lent is held any more.
  bool try_enter() noexcept;
  void leave() noexcept;
  uint32_t in_flight() const noexcept { return in_flight_.load(std::memory_order_acquire); }

  // From now on requests are answered with kCancelled instead of being run.
  void close() noexcept { closed_.store(true); }
  bool closed() const noexcept { return closed_.load(std::memory_order_acquire); }
  bool ended() const noexcept { return ended_.load(std::memory_order_acquire); }
  // Until the session has ended and nothing of it is in flight: from then on the node holds no memory of the client's.
  bool wait_released(Deadline deadline);

  // What the worker saw last; for status.
  uint64_t bytes_in_use() const noexcept {
    return bytes_in_use_.load(std::memory_order_relaxed) + regions_->bytes.load(std::memory_order_relaxed);
  }
  const std::shared_ptr<RegionAccount>& regions() const noexcept { return regions_; }
  uint64_t storage_count() const noexcept { return storage_count_.load(std::memory_order_relaxed); }

  Response run_st(Request& request);
  // Part of run_st, and for when that threw: from here on the node reads nothing that the request lent.
  void return_lent_st(const Request& request, Response& response);
  // Drops every storage and template. The second call does nothing.
  void end_st();

  // What it had of its device, and its work that waits there.
  FairShare<Work>& service_st() noexcept { return service_; }

 private:
  struct Template {
    std::shared_ptr<const executor::Program> program;
    uint64_t bytes = 0;  // serialized
  };
  struct Failure {
    uint32_t epoch = 0;
    Status why;
  };

  std::shared_ptr<const executor::Program> find_template(uint64_t id) const;
  executor::Store* store_st();
  void free_st(const Request& request);
  Status adopt_st(Request& request, Response& response);
  Status adopt_one_st(UploadOrder& order, Response& response);
  void share_st(UploadOrder& order) const;
  Status settle_st(UploadRegion& region);
  Status invoke_st(const Request& request, Response& response);
  Status check_st(const Request& request, const executor::Program& program) const;
  void fetch_st(const Request& request, Response& response);
  FetchResult fetch_one_st(const FetchOrder& order, Response& response);
  const Failure* failed_st(uint32_t stream, uint32_t epoch);
  void remember_failure_st(uint32_t stream, uint32_t epoch, const Status& why);
  // Adds where it happened: what the client shows to its user.
  Status located(const Status& status) const;

  const uint64_t number_;
  const std::string place_;  // "node 'a' (cpu)"
  const int threads_;
  const SessionLimits limits_;
  std::atomic<uint64_t>* const progress_;
  const ContentAccess content_;

  mutable std::mutex template_mutex_;
  std::unordered_map<uint64_t, Template> templates_;
  uint64_t template_bytes_ = 0;
  uint64_t next_template_ = 1;

  std::atomic<bool> closed_{false};
  std::atomic<bool> ending_{false};
  std::atomic<bool> ended_{false};
  std::mutex ended_mutex_;
  std::condition_variable ended_signal_;
  std::atomic<uint32_t> in_flight_{0};
  std::atomic<uint64_t> bytes_in_use_{0};
  // Shared with the upload regions that it counts.
  const std::shared_ptr<RegionAccount> regions_ = std::make_shared<RegionAccount>();
  std::atomic<uint64_t> storage_count_{0};

  // The worker's.
  FairShare<Work> service_;
  std::unique_ptr<executor::Store> store_;
  std::unordered_map<uint32_t, Failure> failed_streams_;
  std::unordered_map<uint64_t, Status> failed_uploads_;
  std::vector<int64_t> params_;
  std::vector<uint64_t> placed_;
};

}  // namespace genie::node
