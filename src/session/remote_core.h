// RemoteCore: the client side of a session with another process: its endpoint, its shared memory, its tickets.
//
// Purpose: what a RemoteLink, its uploads, its tickets and its results share. It lives as long as the last of them, so
//   that results stay readable after the link and the node are gone.
// Thread-safety: public functions may be called from any thread. One mutex guards the transport and the tickets, a second
//   one, taken last, places in windows and the results that are to be given back: both are dropped by any thread.
// Waiting: of several waiting threads one polls, and sleeps in the transport with the transport's mutex held; the others
//   sleep on a condition variable. Whoever needs the transport meanwhile wakes the poller, which steps aside.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "datapath/base/file_descriptor.h"
#include "datapath/base/spin_budget.h"
#include "datapath/transport.h"
#include "src/protocol/fragments.h"
#include "src/protocol/invocation_coder.h"
#include "src/protocol/session_messages.h"
#include "src/session/link.h"
#include "src/session/span_allocator.h"

namespace genie::session {

// Uploads from here on lie in a region that is handed over: the bytes that were written become the storage. Smaller ones go
// through a window and are copied out by the node, which is faster than what a region costs (see docs/performance.md), as
// long as no more than this waits to be submitted.
inline constexpr size_t kRegionUploadBytes = size_t{256} << 10;

// Memory that the node copies uploads out of, or, over a network, writes results into.
struct UploadWindow {
  uint32_t number = 0;
  datapath::Region region;
  SpanAllocator places;
};

// Memory that uploads share, one behind the other, until a submission hands it over as a whole.
struct OutgoingRegion {
  datapath::Region region;
  size_t used = 0;
  size_t present = 0;     // only its owner's thread makes more of it present
  uint32_t writers = 0;   // uploads in it that were neither submitted nor dropped
  std::thread::id owner;  // only this thread puts uploads into it; nobody's while it is empty
  // Of the submission that is being made.
  uint32_t leaving = 0;  // of the writers, the ones that it takes along
  bool departs = false;  // it takes the region along
  uint32_t number = 0;   // among the regions that it takes along
};

// Memory of the node that results lie in, mapped privately: what the program writes there is its own. While it holds a result
// the node does not write it; before a result goes back the program's own pages of it are dropped, since they would hide what
// the node puts there next.
struct ResultRegion {
  datapath::RemoteRegion import;
  Status failure;  // why it is not mapped
};

// Where one upload lies, or one result is to lie.
struct UploadPlace {
  UploadWindow* window = nullptr;
  size_t offset = 0;
  size_t size = 0;
};
// A mutex that knows whether the calling thread has it.
class OwnedMutex {
 public:
  void lock() {
    mutex_.lock();
    owner_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  }
  bool try_lock() {
    if (held_by_caller() || !mutex_.try_lock()) return false;
    owner_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    return true;
  }
  void unlock() {
    owner_.store(std::thread::id(), std::memory_order_relaxed);
    mutex_.unlock();
  }
  bool held_by_caller() const { return owner_.load(std::memory_order_relaxed) == std::this_thread::get_id(); }

 private:
  std::mutex mutex_;
  std::atomic<std::thread::id> owner_{};
};

class RemoteTicket final : public Ticket {
 public:
  bool done() const noexcept override { return done_.load(std::memory_order_acquire); }
  Outcome& outcome() override { return outcome_; }

 private:
  friend class RemoteCore;
  Outcome outcome_;
  std::vector<UploadPlace> uploads_;
  std::vector<uint64_t> wanted_bytes_;  // of each fetch
  // Over a network, of each fetch: where the node is to write it; no window for one that comes with the completion.
  std::vector<UploadPlace> result_places_;
  std::atomic<bool> done_{false};
};

class RemoteCore : public std::enable_shared_from_this<RemoteCore> {
 public:
  struct Setup {
    std::string node_name;
    std::string uri;
    LinkOptions options;
    uint32_t in_flight_max = 1;
    uint64_t memory_bytes = UINT64_MAX;  // what the node gives a session at most
    std::unique_ptr<datapath::Transport> transport;
    datapath::EndpointId endpoint;
  };
  explicit RemoteCore(Setup setup);
  ~RemoteCore();
  RemoteCore(const RemoteCore&) = delete;
  RemoteCore& operator=(const RemoteCore&) = delete;

  Result<std::unique_ptr<Upload>> begin_upload(size_t size);
  Result<std::unique_ptr<Upload>> snapshot(std::span<const std::byte> source, const SnapshotWriter& write);
  Result<std::shared_ptr<Ticket>> submit(Submission submission);
  Status wait(const RemoteTicket& ticket);
  void poll();
  // Ends every pending ticket with `why` and hangs up. The first reason stays.
  void end(const Status& why);
  Status failure() const;
  // Looks whether the node is still there, without blocking.
  Status check();
  LinkCounters counters() const;
  void count_template() noexcept { add(templates_registered_, 1); }

 private:
  friend class RemoteUpload;
  friend class RemoteFetched;
  friend class PlacedFetched;
  class Guard;
  using Departing = std::vector<std::unique_ptr<OutgoingRegion>>;

  static void add(std::atomic<uint64_t>& counter, uint64_t amount) noexcept {
    counter.fetch_add(amount, std::memory_order_relaxed);
  }

  // -- remote_core.cc: progress
  Result<std::shared_ptr<Ticket>> submit(Submission submission, size_t& handed_over_bytes);
  template <typename Predicate>
  Status wait_for(const Predicate& reached);
  template <typename Predicate>
  void poll_until(const Predicate& reached, uint64_t began_ns, uint64_t until_ns);
  bool poll_locked();
  void on_message_locked(datapath::Completion& completion);
  void on_completion_locked(wire::CompletionMessage message);
  Status fill_outcome(RemoteTicket& ticket, wire::CompletionMessage& message);
  void finish_locked(RemoteTicket& ticket);
  void end_locked(const Status& why);
  Status send_locked(const wire::ClientMessage& message, bool submission);
  void notify_waiters() noexcept;
  Status timed_out() const;

  // -- attendant.cc: who polls while nobody waits
  void attend();
  bool attend_once(int& armed);
  void call_attendant() noexcept;

  // -- remote_uploads.cc: where uploads lie
  std::optional<UploadPlace> place_in_window(size_t size);
  Result<UploadPlace> place_in_new_window(size_t size);
  Result<std::unique_ptr<Upload>> upload_in_region(size_t size);
  OutgoingRegion* find_region(size_t size);
  Result<std::unique_ptr<OutgoingRegion>> make_region_locked(size_t size);
  Status make_present(OutgoingRegion& region, size_t end);
  void leave_region(OutgoingRegion& region) noexcept;
  void drop_upload(const UploadPlace& place) noexcept;
  void release_upload(const UploadPlace& place) noexcept;
  Status take_uploads_locked(Submission& submission, RemoteTicket& ticket, wire::SubmissionMessage& message,
                             size_t& handed_over_bytes);
  Departing take_departing(const Submission& submission);
  Result<std::unique_ptr<OutgoingRegion>> copy_remaining_locked(const Submission& submission);
  Status hand_over_locked(const Departing& departing, wire::SubmissionMessage& message, size_t& handed_over_bytes);
  void drop_idle_regions_locked();
  void prepare_ahead(size_t size);

  // -- remote_content.cc: uploads that the node has already
  struct Inquiry {
    std::atomic<bool> answered{false};
    bool found = false;  // once answered
  };
  enum class Expectation : uint8_t { kUnknown, kAbsent, kPresent };
  std::shared_ptr<Inquiry> ask(size_t size, uint64_t sketch);
  std::optional<wire::ContentHash> hash_meanwhile(std::span<const std::byte> source, const Inquiry& inquiry);
  void wait_for_answer(const Inquiry& inquiry, Deadline deadline);
  bool await(const std::shared_ptr<Inquiry>& inquiry);
  Status on_answer_locked(const wire::Answer& answer);
  std::unique_ptr<Upload> known(uint64_t blob, size_t size);
  bool is_offered(size_t size, uint64_t sketch);
  uint64_t take_offer(size_t size, const wire::ContentHash& hash);
  void release_offers();
  void release_blob(uint64_t name) noexcept;

  // -- remote_results.cc: where results lie
  Status on_result_region_locked(const wire::ResultRegion& told);
  Result<std::unique_ptr<Fetched>> make_fetched_locked(const wire::FetchedEntry& entry, uint64_t size);
  void release_result(uint64_t result, std::span<std::byte> bytes, bool written) noexcept;

  // -- remote_places.cc: results that the node writes into memory of this process
  Status place_results_locked(RemoteTicket& ticket, wire::SubmissionMessage& message);
  Result<UploadPlace> place_result_locked(size_t size);
  Result<std::unique_ptr<Fetched>> make_placed_locked(UploadPlace& place);
  void release_place(const UploadPlace& place) noexcept;
  void release_places(RemoteTicket& ticket) noexcept;
  std::vector<uint64_t> take_releases();
  void send_releases_locked();

  const std::string place_;  // "node 'a' at unix:/path"
  const LinkOptions options_;
  const uint32_t in_flight_max_;
  const uint64_t memory_bytes_;
  const uint64_t timeout_ns_;
  bool maps_ = true;  // each side addresses what the other shares; otherwise bytes are written across a network

  // Guarded by mutex_.
  mutable OwnedMutex mutex_;
  std::unique_ptr<datapath::Transport> transport_;
  datapath::EndpointId endpoint_;
  Status failure_;
  wire::Encoder encoder_;
  wire::InvocationCoder invocations_;
  wire::Reassembler incoming_;
  std::unordered_map<uint64_t, std::shared_ptr<RemoteTicket>> tickets_;
  std::vector<wire::WindowOffer> window_offers_;  // to be told with the next submission
  uint64_t next_ticket_ = 1;
  uint32_t next_window_ = 0;
  std::unordered_map<uint32_t, ResultRegion> result_regions_;
  std::unordered_map<uint64_t, std::shared_ptr<Inquiry>> inquiries_;  // without an answer
  uint64_t next_question_ = 1;
  std::vector<datapath::Completion> completions_;

  // Guarded by memory_mutex_, except that windows are added with mutex_ held too.
  std::mutex memory_mutex_;
  std::vector<std::unique_ptr<UploadWindow>> upload_windows_;
  std::vector<std::unique_ptr<OutgoingRegion>> outgoing_;
  std::vector<std::unique_ptr<UploadWindow>> result_windows_;
  size_t result_window_bytes_ = 0;
  size_t placed_bytes_ = 0;  // of results that the program holds, or waits for
  size_t upload_window_bytes_ = 0;
  size_t waiting_window_bytes_ = 0;         // of uploads that nobody has submitted yet
  std::vector<wire::Answer::Blob> offers_;  // blobs that the node keeps for this session, in case it brings them
  std::vector<uint64_t> result_releases_;   // to be told with the next submission, or when they hold much memory
  uint64_t result_release_bytes_ = 0;

  // Who polls.
  std::mutex turn_mutex_;
  std::condition_variable turn_signal_;
  SpinBudget spin_;  // of who polls
  bool polling_ = false;
  std::atomic<int> waiters_{0};
  std::atomic<int> contenders_{0};
  std::atomic<bool> sleeping_{false};

  // The attendant.
  datapath::FileDescriptor call_fd_;
  std::atomic<uint64_t> polls_{0};
  std::thread attendant_;

  std::atomic<Expectation> expectation_{Expectation::kUnknown};  // of the next inquiry
  std::atomic<bool> impatient_{false};                           // nothing is asked any more

  std::atomic<uint64_t> last_sign_ns_{0};
  std::atomic<uint32_t> in_flight_{0};
  std::atomic<bool> ended_{false};

  std::atomic<uint64_t> templates_registered_{0};
  std::atomic<uint64_t> submissions_{0};
  std::atomic<uint64_t> message_bytes_{0};
  std::atomic<uint64_t> uploads_{0};
  std::atomic<uint64_t> upload_bytes_{0};
  std::atomic<uint64_t> upload_known_bytes_{0};
  std::atomic<uint64_t> upload_copied_bytes_{0};
  std::atomic<uint64_t> upload_regions_{0};
  std::atomic<uint64_t> fetches_{0};
  std::atomic<uint64_t> fetch_bytes_{0};
  std::atomic<uint64_t> fetch_copied_bytes_{0};
};

// The transport's mutex, taken from a poller that sleeps with it.
class RemoteCore::Guard {
 public:
  explicit Guard(RemoteCore& core) : core_(core) {
    core_.contenders_.fetch_add(1, std::memory_order_seq_cst);
    if (core_.sleeping_.load(std::memory_order_seq_cst)) core_.transport_->wake();
    core_.mutex_.lock();
    core_.contenders_.fetch_sub(1, std::memory_order_seq_cst);
  }
  ~Guard() { core_.mutex_.unlock(); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

 private:
  RemoteCore& core_;
};

// An upload's memory: a place in a window, or in a region that becomes the node's; or none, since the node has the bytes.
class RemoteUpload final : public Upload {
 public:
  RemoteUpload(std::shared_ptr<RemoteCore> core, UploadPlace place)
      : core_(std::move(core)),
        place_(place),
        bytes_(place.window->region.data + place.offset, place.size),
        size_(place.size) {}
  RemoteUpload(std::shared_ptr<RemoteCore> core, OutgoingRegion* region, size_t offset, size_t size)
      : core_(std::move(core)),
        region_(region),
        offset_(offset),
        bytes_(region->region.data + offset, size),
        size_(size) {}
  RemoteUpload(std::shared_ptr<RemoteCore> core, uint64_t blob, size_t size)
      : core_(std::move(core)), blob_(blob), size_(size) {}
  ~RemoteUpload() override {
    if (taken_) return;
    if (blob_ != 0) {
      core_->release_blob(blob_);
    } else if (region_ != nullptr) {
      core_->leave_region(*region_);
    } else {
      core_->drop_upload(place_);
    }
  }
  std::span<std::byte> bytes() override { return bytes_; }

 private:
  friend class RemoteCore;
  const std::shared_ptr<RemoteCore> core_;
  UploadPlace place_;
  OutgoingRegion* region_ = nullptr;
  size_t offset_ = 0;  // in the region
  std::span<std::byte> bytes_;
  uint64_t blob_ = 0;  // as the node calls it
  size_t size_ = 0;
  bool taken_ = false;
};

// A result where the node made it, which is given back when it goes.
class RemoteFetched final : public Fetched {
 public:
  RemoteFetched(std::shared_ptr<RemoteCore> core, uint64_t result, std::span<std::byte> bytes)
      : core_(std::move(core)), result_(result), bytes_(bytes) {}
  ~RemoteFetched() override { core_->release_result(result_, bytes_, written_.load(std::memory_order_relaxed)); }
  std::span<std::byte> bytes() override { return bytes_; }
  // The mapping is private: the kernel copies the pages that are written.
  bool claim() noexcept override {
    written_.store(true, std::memory_order_relaxed);
    return true;
  }

 private:
  const std::shared_ptr<RemoteCore> core_;
  const uint64_t result_;
  const std::span<std::byte> bytes_;
  std::atomic<bool> written_{false};
};

// A result in memory of this process that the node wrote.
class PlacedFetched final : public Fetched {
 public:
  PlacedFetched(std::shared_ptr<RemoteCore> core, UploadPlace place)
      : core_(std::move(core)), place_(place), bytes_(place.window->region.data + place.offset, place.size) {}
  ~PlacedFetched() override { core_->release_place(place_); }
  std::span<std::byte> bytes() override { return bytes_; }

 private:
  const std::shared_ptr<RemoteCore> core_;
  const UploadPlace place_;
  const std::span<std::byte> bytes_;
};

}  // namespace genie::session
