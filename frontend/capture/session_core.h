// SessionCore: one client's relation to a cluster as capture sees it: its link, its streams, its templates, its counters.
//
// Thread-safety: all public functions may be called from any thread. Lock order: flush lock, then a stream's lock.
// Ownership: shared by the public Session, by every remote storage (through the registry, which keeps cores until the process
//   ends) and by threads that wait.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "frontend/capture/fragment_builder.h"
#include "frontend/capture/storage_state.h"
#include "frontend/capture/stream.h"
#include "frontend/capture/template_cache.h"
#include "src/session/link.h"

namespace genie::frontend {

enum class FlushReason : uint8_t { kValue, kShape, kLimit, kConflict, kSynchronize, kEager, kCount };
const char* flush_reason_name(FlushReason reason);

struct CaptureLimits {
  uint32_t max_records = 8192;                      // a segment is flushed when it has that many records,
  uint64_t max_upload_bytes = uint64_t{256} << 20;  // or holds that many bytes of snapshots
};

struct CaptureCounters {
  std::atomic<uint64_t> executed{0}, pruned{0};  // what is captured, and shapes that were cached: see Stream
  std::atomic<uint64_t> flushes[static_cast<size_t>(FlushReason::kCount)]{};
  std::atomic<uint64_t> template_hits{0}, template_misses{0}, templates_forgotten{0};
  std::atomic<uint64_t> shape_own{0}, shape_meta{0}, shape_node{0};
  std::atomic<uint64_t> client_fallbacks{0};
  std::atomic<uint64_t> snapshot_bytes{0};     // written once from the program's CPU tensors into network-ready memory
  std::atomic<uint64_t> user_copied_bytes{0};  // fetched, then copied into a tensor that the program brought
};

// A submission whose outcome is still to come, and what it wrote.
struct InFlight {
  std::shared_ptr<session::Ticket> ticket;
  Stream* stream = nullptr;
  uint32_t epoch = 0;
  uint64_t template_id = 0;
  struct Write {
    uint32_t last_record;
    StateRef state;
  };
  std::vector<const SourceLine*> sources;  // by the same numbers; empty without tracing
  std::vector<Write> writes;  // storages that live on, by the number of the record (in the template) that writes
};

// What flush() was asked to bring back.
struct Wanted {
  StorageState* state = nullptr;  // null: nothing
  uint64_t offset = 0;
  uint64_t size = 0;
};

// Part of looking for mistakes (set_check_shapes): kInternal when `found` is not the template of `segment`.
Status check_template(FragmentBuilder& builder, const Segment& segment, const KnownTemplate& found);

// Every use of the storage throws `why` from now on.
void poison(StorageState& state, const std::shared_ptr<const Status>& why);

// Off: every operator runs on the node before its call returns.
void set_lazy(bool lazy);
bool is_lazy();

// An error in a child of the process that opened the sessions: nothing of them may be touched there.
Status check_fork();

// The streams that the calling thread appends to, one per session that it used.
std::vector<Stream*> thread_streams();

class SessionCore {
 public:
  static Result<std::shared_ptr<SessionCore>> connect(std::string_view uri, const session::LinkOptions& options);
  ~SessionCore();

  const session::NodeInfo& node() const { return link_->node(); }
  session::Link& link() { return *link_; }
  const CaptureLimits& limits() const { return limits_; }
  CaptureCounters& counters() { return counters_; }
  int first_device() const { return first_device_; }
  int device_count() const { return device_count_; }
  void set_devices(int first, int count) {
    first_device_ = first;
    device_count_ = count;
  }

  StorageState* new_storage(uint64_t size_bytes);
  // Names a generator on the node, which ends there when the last reference goes: ids that are free again are used again, so
  // that a program that makes one per step repeats its templates.
  StorageState* new_generator();
  // The stream of the calling thread, or of the thread that called backward.
  Stream& current_stream();

  // Orders a touch of `state` by `stream` after what other streams have pending on it: flushes them. No lock held.
  void order_touch(Stream& stream, StorageState& state, bool write);

  // Plans and submits what `stream` has pending; with `wanted`, also fetches these bytes and returns the ticket to wait for.
  // `last_record`, if given, appends to the stream under the same locks.
  std::shared_ptr<session::Ticket> flush(Stream& stream, FlushReason reason, const Wanted& wanted = {},
                                         const std::function<void()>& last_record = {});
  // Until the ticket is done; collects failures. Throws genie::Error when the link fails.
  void wait(session::Ticket& ticket);
  // Flushes every stream and waits for everything in flight; throws the first error that nobody has seen.
  void synchronize();
  // Waits for everything that was sent.
  void drain();
  // Collects what is done, without blocking.
  void collect();

  void storage_gone(StorageState* state) noexcept;
  void close();
  // Its node has gone.
  bool lost() const { return !link_->check().ok(); }
  bool closed() const { return closed_.load(std::memory_order_acquire); }

  // Why a submission that was waited for failed; with the line that captured what failed, where it is known.
  Status failure_of(session::Ticket& ticket);
  // The program has been shown a failure: synchronize() does not raise it again.
  void failure_seen(const Status& told);
  std::vector<std::string> last_failures();
  std::vector<Stream*> streams();

 private:
  friend class Flush;
  SessionCore(std::unique_ptr<session::Link> link, CaptureLimits limits)
      : link_(std::move(link)),
        limits_(limits),
        templates_(link_->node().templates_max, link_->node().template_bytes_max) {}

  Stream& take_stream(std::atomic<Stream*>& mine);
  std::vector<uint64_t> take_frees();
  void reuse_generators(const std::vector<uint64_t>& freed);
  Status trace_failure(const InFlight& flight);
  void fail_writes(InFlight& flight, const session::Outcome& outcome, const Status& why);
  void fail_everything(const Status& status);
  void flush_segment(uint32_t number, Stream& except);
  // Until no submission in flight uses one of these templates.
  Status await_unused(const std::vector<uint64_t>& templates);

  const std::unique_ptr<session::Link> link_;
  const CaptureLimits limits_;
  CaptureCounters counters_;
  int first_device_ = 0;
  int device_count_ = 0;
  std::atomic<uint64_t> next_storage_{1};
  std::atomic<StorageState*> to_free_{nullptr};
  std::atomic<bool> closed_{false};

  std::mutex generators_mutex_;
  std::vector<uint64_t> free_generators_;
  uint64_t next_generator_ = 0;

  std::mutex streams_mutex_;
  std::deque<std::unique_ptr<Stream>> streams_;

  std::mutex flush_mutex_;
  TemplateCache templates_;
  FragmentBuilder builder_;

  std::mutex flights_mutex_;
  std::deque<InFlight> flights_;
  std::deque<std::string> failures_;
  Status unseen_failure_;
  // What failed last, told with its line: those who wait for these submissions tell it so too.
  std::deque<std::pair<std::shared_ptr<session::Ticket>, Status>> traced_failures_;
};

}  // namespace genie::frontend
