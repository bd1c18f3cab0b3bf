// Link: a session's relation to one node. The frontend speaks to nodes through this and nothing else.
//
// Purpose: open a session, register templates, upload bytes, submit invocations, fetch results. Two implementations:
//   remote (gRPC control plane + a Transport) and embedded (a node inside this process). The frontend cannot tell which.
// Thread-safety: all functions may be called from any thread. Submissions of one stream must be ordered by their caller.
// Ownership: an Upload belongs to the caller until a submission takes it; a Fetched belongs to the caller and may
//   outlive the link and the node.
// Errors: a link that lost its node answers kDisconnected everywhere, with the node's name and what to do in the text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "datapath/base/clock.h"
#include "genie/status.h"
#include "src/executor/executor.h"

namespace genie::session {

using executor::kGeneratorIds;
using executor::ReportedTensor;
using executor::SlotBinding;
using executor::StorageVersion;

struct DeviceInfo {
  std::string kind;  // "cpu", "cuda:0"
  int threads = 1;   // intra-op threads on the node
  uint64_t memory_bytes = 0;
};

struct NodeInfo {
  std::string name;
  std::string version;  // of Genie
  std::string torch_version;
  std::string transport;            // "embedded", "shm", ...
  std::string transport_why;        // for people: why this one
  uint64_t templates_max = 0;       // that a session may have registered at a time,
  uint64_t template_bytes_max = 0;  // and their bytes together
  std::vector<DeviceInfo> devices;
  // Operators besides PyTorch's that the node runs: whatever this process has, or those of its libraries, as
  // "namespace::name.overload", with the hash of their schemas.
  bool shares_process = false;
  std::unordered_map<std::string, uint64_t> operators;
};

struct LinkOptions {
  uint64_t connect_timeout_ms = 10'000;
  uint64_t progress_timeout_ms = 30'000;  // a wait fails after this long without progress on the node
  bool busy_polling = false;
  std::string transport = "auto";
  std::string token;                 // authentication, when the node asks for one
  uint64_t peer_timeout_ms = 5'000;  // across machines: a node that is silent for so long has gone; 0: never
  std::string rdma_devices;          // "mlx5_0,mlx5_2:1": those that verbs may use; empty: every port that is up
};

// Network-ready memory: the caller writes the snapshot of a tensor into it, once. Dropping it gives it back unused.
class Upload {
 public:
  virtual ~Upload() = default;
  virtual std::span<std::byte> bytes() = 0;
  // The caller's own bytes, which are still to be read.
  virtual bool lent() const noexcept { return false; }
};

// A fetched result, in the memory where the node made it as far as the two can share. Nothing writes its bytes but the
// caller, and nobody else sees what the caller writes.
class Fetched {
 public:
  virtual ~Fetched() = default;
  virtual std::span<std::byte> bytes() = 0;
  // Before the first write. False: the node still holds the same bytes; the caller writes to a copy of its own instead, which
  // is counted here. May be asked again.
  virtual bool claim() noexcept { return true; }
};

// Writes a snapshot into the memory that it is given, once.
using SnapshotWriter = std::function<void(std::span<std::byte>)>;

struct UploadRequest {
  StorageVersion storage;  // a new storage
  std::unique_ptr<Upload> memory;
  bool transient = false;  // nobody will name the storage after this submission
};

struct FetchRequest {
  StorageVersion storage;
  uint64_t offset = 0;
  uint64_t size = 0;
};

// One flush: frees and uploads first, then the invocation, then the fetches.
struct Submission {
  uint32_t stream = 0;
  uint32_t epoch = 0;  // the node skips submissions of an epoch in which the stream failed
  std::vector<uint64_t> frees;
  std::vector<UploadRequest> uploads;
  uint64_t template_id = 0;  // as register_template answered; 0: no invocation
  std::vector<SlotBinding> slots;
  std::vector<uint32_t> param_index;  // parameters that differ from the template's defaults
  std::vector<int64_t> param_value;
  std::vector<FetchRequest> fetches;
};

struct Outcome {
  Status status;  // of the invocation, then of the fetches
  int64_t failed_record = -1;
  uint64_t executed_records = 0;
  std::vector<std::unique_ptr<Fetched>> fetched;  // in the order of the requests; null where that fetch failed
  std::vector<Status> fetch_status;
  std::vector<ReportedTensor> reported;
};

// A submission on its way. done() never blocks; outcome() is valid once done.
class Ticket {
 public:
  virtual ~Ticket() = default;
  virtual bool done() const noexcept = 0;
  virtual Outcome& outcome() = 0;
};

struct LinkCounters {
  uint64_t templates_registered = 0;
  uint64_t submissions = 0;
  uint64_t message_bytes = 0;  // of submission messages
  uint64_t uploads = 0;
  uint64_t upload_bytes = 0;         // that were sent
  uint64_t upload_known_bytes = 0;   // that were not, because the node had them
  uint64_t upload_copied_bytes = 0;  // by any CPU after the snapshot (0: the write itself was the snapshot)
  uint64_t upload_regions = 0;       // handed over with uploads in them
  uint64_t fetches = 0;
  uint64_t fetch_bytes = 0;
  // By any CPU, between the storage and the caller's memory, or later because one side wrote what both held.
  uint64_t fetch_copied_bytes = 0;
};

class Link {
 public:
  virtual ~Link() = default;

  // "embedded:", "unix:/path.sock", "tcp://host:port" (the node's control address).
  static Result<std::unique_ptr<Link>> open(std::string_view uri, const LinkOptions& options);

  virtual const NodeInfo& node() const = 0;

  // Blocks. The answer is valid until the caller has it forgotten. The link remembers nothing: the caller caches by
  // fingerprint, and names in `forget` what the node drops first to make room; no submission in flight may use these.
  virtual Result<uint64_t> register_template(std::span<const std::byte> serialized,
                                             std::span<const uint64_t> forget = {}) = 0;

  virtual Result<std::unique_ptr<Upload>> begin_upload(size_t size) = 0;
  // An upload of `source`, which `write` writes, unless the node has these bytes already, of this session or of another one of
  // its identity: then nothing is written or sent, and the upload has no memory to look at.
  virtual Result<std::unique_ptr<Upload>> snapshot(std::span<const std::byte> source, const SnapshotWriter& write) {
    Result<std::unique_ptr<Upload>> upload = begin_upload(source.size());
    if (upload) write((*upload)->bytes());
    return upload;
  }
  // Takes `source` as it is, without a snapshot, where the node can compute on the caller's own bytes (embedded only; null
  // elsewhere). The caller promises not to write until the submission that takes it is done. By then a transient storage is
  // gone, and any other has been copied; `keep_alive` is dropped either way.
  virtual std::unique_ptr<Upload> lend_upload(std::span<std::byte> source, std::shared_ptr<void> keep_alive) = 0;

  // Never blocks for the node's work; blocks at most for back-pressure, within the deadline.
  virtual Result<std::shared_ptr<Ticket>> submit(Submission submission) = 0;
  // Until the ticket is done; fails with kTimedOut after progress_timeout_ms without progress, or with the link's error.
  virtual Status wait(Ticket& ticket) = 0;
  // Makes progress without blocking: tickets become done.
  virtual void poll() = 0;
  // Why nothing can be submitted any more; OK while the node is there, as far as can be seen without blocking.
  virtual Status check() = 0;

  virtual LinkCounters counters() const = 0;
  // Ends the session on the node; pending tickets end with kCancelled. Idempotent; the destructor calls it.
  virtual void close() = 0;
};

}  // namespace genie::session
