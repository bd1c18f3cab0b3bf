#include "src/session/embedded_link.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <utility>

#include "datapath/base/clock.h"
#include "datapath/base/pause.h"
#include "src/node/aligned_block.h"
#include "src/session/block_fetched.h"

namespace genie::session {
namespace {

// How long a waiting thread spins before it sleeps: a small step is over by then.
constexpr uint64_t kSpinNs = 20'000;
// How often a sleeping waiter looks at the node's progress.
constexpr uint64_t kProgressCheckMs = 100;
// How long close() waits for the worker to let go of the session's memory.
constexpr uint64_t kCloseMs = 5'000;

// Where threads of one link sleep until a response arrived.
struct Wakeup {
  std::mutex mutex;
  std::condition_variable signal;
  std::atomic<int> waiters{0};

  // A waiter counts itself, then looks whether it is done; we are done first, then look for waiters. Both touch the same
  // counter with a read-modify-write, so the second of the two sees the first.
  void notify() noexcept {
    if (waiters.fetch_add(0, std::memory_order_acq_rel) == 0) return;
    { const std::lock_guard lock(mutex); }
    signal.notify_all();
  }
};

struct Counted {
  std::atomic<uint64_t> templates_registered{0};
  std::atomic<uint64_t> submissions{0};
  std::atomic<uint64_t> uploads{0};
  std::atomic<uint64_t> upload_bytes{0};
  std::atomic<uint64_t> upload_copied_bytes{0};
  std::atomic<uint64_t> fetches{0};
  std::atomic<uint64_t> fetch_bytes{0};
  std::atomic<uint64_t> fetch_copied_bytes{0};
};

void add(std::atomic<uint64_t>& counter, uint64_t amount) { counter.fetch_add(amount, std::memory_order_relaxed); }

class EmbeddedUpload : public Upload {
 public:
  virtual executor::HostMemory take() = 0;
};

class OwnUpload final : public EmbeddedUpload {
 public:
  explicit OwnUpload(datapath::Buffer block) : block_(std::move(block)) {}
  std::span<std::byte> bytes() override { return block_.bytes(); }
  executor::HostMemory take() override {
    executor::HostMemory memory{.data = block_.data(), .size = block_.size(), .writable = true, .owner = nullptr};
    memory.owner = std::make_shared<datapath::Buffer>(std::move(block_));
    return memory;
  }

 private:
  datapath::Buffer block_;
};

class LentUpload final : public EmbeddedUpload {
 public:
  LentUpload(std::span<std::byte> source, std::shared_ptr<void> keep_alive)
      : source_(source), keep_alive_(std::move(keep_alive)) {}
  std::span<std::byte> bytes() override { return source_; }
  bool lent() const noexcept override { return true; }
  executor::HostMemory take() override {
    // Still the caller's bytes: a write on the node makes a copy first.
    return {.data = source_.data(), .size = source_.size(), .writable = false, .owner = std::move(keep_alive_)};
  }

 private:
  std::span<std::byte> source_;
  std::shared_ptr<void> keep_alive_;
};

// The storage's own memory.
class SharedFetched final : public Fetched {
 public:
  SharedFetched(executor::SharedBytes shared, std::shared_ptr<Counted> counted)
      : shared_(std::move(shared)), counted_(std::move(counted)) {}
  std::span<std::byte> bytes() override { return shared_.bytes; }
  bool claim() noexcept override {
    if (executor::is_only_holder(shared_.holder)) return true;
    add(counted_->fetch_copied_bytes, shared_.bytes.size());
    return false;
  }

 private:
  const executor::SharedBytes shared_;
  const std::shared_ptr<Counted> counted_;
};

class EmbeddedTicket final : public Ticket, public node::ResponseSink {
 public:
  EmbeddedTicket(std::shared_ptr<Wakeup> wakeup, std::shared_ptr<Counted> counted)
      : wakeup_(std::move(wakeup)), counted_(std::move(counted)) {}

  bool done() const noexcept override { return done_.load(std::memory_order_acquire); }
  Outcome& outcome() override { return outcome_; }

  void deliver(node::Response response) noexcept override {
    outcome_.status = std::move(response.status);
    outcome_.failed_record = response.failed_record;
    outcome_.executed_records = response.executed_records;
    outcome_.reported = std::move(response.reported);
    outcome_.fetched.reserve(response.fetched.size());
    outcome_.fetch_status.reserve(response.fetched.size());
    for (node::FetchResult& result : response.fetched) {
      std::unique_ptr<Fetched> fetched;
      if (result.status.ok() && result.shared.holder != nullptr) {
        fetched = std::make_unique<SharedFetched>(std::move(result.shared), counted_);
      } else if (result.status.ok()) {
        fetched = std::make_unique<BlockFetched>(std::move(result.block));
      }
      if (fetched != nullptr) {
        add(counted_->fetches, 1);
        add(counted_->fetch_bytes, fetched->bytes().size());
      }
      outcome_.fetched.push_back(std::move(fetched));
      outcome_.fetch_status.push_back(std::move(result.status));
    }
    add(counted_->upload_copied_bytes, response.upload_copied_bytes);
    add(counted_->fetch_copied_bytes, response.fetch_copied_bytes);
    done_.store(true, std::memory_order_release);
    wakeup_->notify();
  }

 private:
  const std::shared_ptr<Wakeup> wakeup_;
  const std::shared_ptr<Counted> counted_;
  Outcome outcome_;
  std::atomic<bool> done_{false};
};

class EmbeddedLink final : public Link {
 public:
  EmbeddedLink(std::shared_ptr<node::Node> node, std::shared_ptr<node::SessionState> session,
               const LinkOptions& options)
      : node_(std::move(node)), session_(std::move(session)), options_(options), info_(node_->info()) {
    info_.transport = "embedded";
  }
  ~EmbeddedLink() override { close(); }

  const NodeInfo& node() const override { return info_; }

  Result<uint64_t> register_template(std::span<const std::byte> serialized, std::span<const uint64_t> forget) override {
    Result<uint64_t> id = session_->add_template(serialized, forget);
    if (id) add(counted_->templates_registered, 1);
    return id;
  }

  Result<std::unique_ptr<Upload>> begin_upload(size_t size) override {
    Result<datapath::Buffer> block = node::make_aligned_block(size);
    GENIE_TRY(block.status());
    return std::unique_ptr<Upload>(std::make_unique<OwnUpload>(std::move(*block)));
  }

  std::unique_ptr<Upload> lend_upload(std::span<std::byte> source, std::shared_ptr<void> keep_alive) override {
    return std::make_unique<LentUpload>(source, std::move(keep_alive));
  }

  Result<std::shared_ptr<Ticket>> submit(Submission submission) override;
  Status wait(Ticket& ticket) override {
    return wait_for([&ticket] { return ticket.done(); });
  }
  void poll() override {}  // the worker delivers by itself
  Status check() override { return {}; }

  LinkCounters counters() const override;
  void close() override;

 private:
  template <typename Predicate>
  Status wait_for(const Predicate& reached);
  uint64_t progress() const { return node_->device().progress().load(std::memory_order_relaxed); }

  const std::shared_ptr<node::Node> node_;
  const std::shared_ptr<node::SessionState> session_;
  const LinkOptions options_;
  NodeInfo info_;
  const std::shared_ptr<Wakeup> wakeup_ = std::make_shared<Wakeup>();
  const std::shared_ptr<Counted> counted_ = std::make_shared<Counted>();
};

Result<std::shared_ptr<Ticket>> EmbeddedLink::submit(Submission submission) {
  if (session_->closed())
    return Status(Errc::kCancelled, "the session with the embedded node is closed: connect again");
  auto work = std::make_unique<node::Work>(session_, std::make_unique<node::Request>());
  node::Request& request = *work->request;
  for (UploadRequest& upload : submission.uploads) {
    auto* const memory = dynamic_cast<EmbeddedUpload*>(upload.memory.get());
    if (memory == nullptr) {
      return Status(Errc::kInvalidArgument, "the memory of an upload was not made by this link");
    }
    add(counted_->uploads, 1);
    add(counted_->upload_bytes, memory->bytes().size());
    request.uploads.push_back({.storage = upload.storage,
                               .memory = memory->take(),
                               .lent = memory->lent() ? memory->bytes().data() : nullptr,
                               .transient = upload.transient});
  }
  request.stream = submission.stream;
  request.epoch = submission.epoch;
  request.frees = std::move(submission.frees);
  request.template_id = submission.template_id;
  request.slots = std::move(submission.slots);
  request.param_index = std::move(submission.param_index);
  request.param_value = std::move(submission.param_value);
  request.fetches.reserve(submission.fetches.size());
  for (const FetchRequest& fetch : submission.fetches) {
    request.fetches.push_back({.storage = fetch.storage, .offset = fetch.offset, .size = fetch.size, .share = true});
  }
  auto ticket = std::make_shared<EmbeddedTicket>(wakeup_, counted_);
  request.sink = ticket;
  bool entered = session_->try_enter();
  if (!entered) {
    GENIE_TRY(wait_for([&] { return entered = entered || session_->try_enter(); }));
  }
  if (Status posted = node_->device().post(work, Deadline::after_ms(options_.progress_timeout_ms)); !posted.ok()) {
    session_->leave();
    return posted;
  }
  add(counted_->submissions, 1);
  return std::shared_ptr<Ticket>(std::move(ticket));
}

template <typename Predicate>
Status EmbeddedLink::wait_for(const Predicate& reached) {
  const uint64_t began_ns = now_ns();
  uint64_t seen = progress();
  Deadline deadline = Deadline::after_ms(options_.progress_timeout_ms);
  const auto stuck = [&] {
    if (const uint64_t now = progress(); now != seen) {
      seen = now;
      deadline = Deadline::after_ms(options_.progress_timeout_ms);
    }
    return deadline.expired();
  };
  const auto give_up = [&] {
    return Status(Errc::kTimedOut, node_->device().place() + " made no progress for " +
                                       std::to_string(options_.progress_timeout_ms) +
                                       " ms: raise progress_timeout_ms if one operation may take that long");
  };
  while (options_.busy_polling) {
    if (reached()) return {};
    if (stuck()) return give_up();
    cpu_pause();
  }
  for (uint64_t spun_ns = 0; spun_ns < kSpinNs; spun_ns = now_ns() - began_ns) {
    if (reached()) return {};
    spin_step(spun_ns);
  }
  std::unique_lock lock(wakeup_->mutex);
  wakeup_->waiters.fetch_add(1, std::memory_order_acq_rel);
  Status status;
  while (!reached()) {
    const uint64_t slice_ns = std::min<uint64_t>(deadline.left_ns(), kProgressCheckMs * 1'000'000);
    wakeup_->signal.wait_for(lock, std::chrono::nanoseconds(slice_ns));
    if (!reached() && stuck()) {
      status = give_up();
      break;
    }
  }
  wakeup_->waiters.fetch_sub(1, std::memory_order_relaxed);
  return status;
}

LinkCounters EmbeddedLink::counters() const {
  LinkCounters out;
  out.templates_registered = counted_->templates_registered.load(std::memory_order_relaxed);
  out.submissions = counted_->submissions.load(std::memory_order_relaxed);
  out.uploads = counted_->uploads.load(std::memory_order_relaxed);
  out.upload_bytes = counted_->upload_bytes.load(std::memory_order_relaxed);
  out.upload_copied_bytes = counted_->upload_copied_bytes.load(std::memory_order_relaxed);
  out.fetches = counted_->fetches.load(std::memory_order_relaxed);
  out.fetch_bytes = counted_->fetch_bytes.load(std::memory_order_relaxed);
  out.fetch_copied_bytes = counted_->fetch_copied_bytes.load(std::memory_order_relaxed);
  return out;
}

void EmbeddedLink::close() {
  if (session_->closed()) return;
  node_->close_session(session_);
  // Memory that was lent is back once close() returns. A worker that is stuck keeps its own references.
  if (!node_->device().on_worker()) (void)session_->wait_released(Deadline::after_ms(kCloseMs));
}

}  // namespace

Result<std::shared_ptr<node::Node>> process_node() {
  static auto* const instance = new Result<std::shared_ptr<node::Node>>([]() -> Result<std::shared_ptr<node::Node>> {
    Result<std::unique_ptr<node::Node>> made =
        node::Node::make({.name = "embedded", .session_limits = {.trust = executor::Trust::kProcess}});
    GENIE_TRY(made.status());
    return std::shared_ptr<node::Node>(std::move(*made));
  }());
  // Registered after libtorch's own static objects, hence run before they go: no kernel runs without them. On a thread of
  // its own: the exiting thread's thread-local objects are gone by now, and libtorch looks at one of its own when it frees.
  static const bool registered = std::atexit([] {
                                   if (*instance) std::thread([] { instance->value()->stop(); }).join();
                                 }) == 0;
  (void)registered;
  return *instance;
}

Result<std::unique_ptr<Link>> open_embedded(std::shared_ptr<node::Node> node, const LinkOptions& options) {
  Result<std::shared_ptr<node::SessionState>> session = node->open_session();
  GENIE_TRY(session.status());
  return std::unique_ptr<Link>(std::make_unique<EmbeddedLink>(std::move(node), std::move(*session), options));
}

}  // namespace genie::session
