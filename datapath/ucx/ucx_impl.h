// UcxFabric: the implementation behind make_ucx_fabric(). Internal to this folder.
//
// ucx_fabric.cc: context, worker, memory, progress. ucx_link.cc: links and their end. ucx_post.cc: transfers and messages.
#pragma once

#include <ucp/api/ucp.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "datapath/base/ring_queue.h"
#include "datapath/base/slot_table.h"
#include "datapath/ucx/ucx_fabric.h"

namespace genie::datapath::ucx {

using namespace genie::datapath::net;

inline constexpr unsigned kMessageId = 1;
inline constexpr size_t kMessageBytes = 8192;
inline constexpr size_t kChunkBytes = size_t{512} << 10;
inline constexpr uint32_t kMaxInFlight = 8;
inline constexpr size_t kMaxBatch = 32;

Errc errc_of(ucs_status_t status) noexcept;
Status status_of(ucs_status_t status, const char* what);

// In front of every active message: whose it is. The nonce was told to the peer in the link's address, so that nobody else
// can speak on the link.
struct MessageTag {
  uint32_t link = 0;  // its slot, and in the lowest two bits the lane
  uint32_t generation = 0;
  uint64_t nonce = 0;
};
inline constexpr uint32_t kLaneBits = 2;
static_assert(kLaneCount <= 1U << kLaneBits);

class UcxFabric;

struct UcxMemory final : FabricMemory {
  ~UcxMemory() override;
  UcxFabric* fabric = nullptr;
  ucp_mem_h handle = nullptr;
  std::vector<std::byte> packed_key;
  Buffer block;  // what it lies in, if that is ours
};

struct UcxRemote final : FabricRemote {
  ~UcxRemote() override;
  std::array<ucp_rkey_h, kLaneCount> keys{};
};

// Where a message is put together; it is UCX's from send() until that has sent it.
struct MessagePlace {
  UcxFabric* fabric = nullptr;
  struct UcxLink* link = nullptr;
  MessagePlace* next = nullptr;
  MessageTag tag;
  alignas(64) std::array<std::byte, kMessageBytes> bytes;
};

struct Batch;

struct UcxLane {
  ucp_ep_h endpoint = nullptr;
  struct UcxLink* link = nullptr;
  MessageTag tag;  // of messages that leave here
  MessagePlace* place = nullptr;
  Batch* writes = nullptr;  // that were posted since the last poll() and wait for their flush
};

struct UcxLink final : FabricLink {
  ~UcxLink() override;
  UcxFabric* fabric = nullptr;
  SlotId slot;
  uint64_t nonce = 0;
  bool peer_errors = false;  // UCX tells when the peer dies, and endpoints can be closed by force
  bool failed = false;
  bool closing = false;
  bool forced = false;
  bool told_closed = false;
  uint32_t outstanding = 0;               // UCX requests of batches and messages
  std::vector<ucs_status_ptr_t> closers;  // flushes and closes of endpoints, which poll() looks at
  std::array<UcxLane, kLaneCount> lanes;
};

// Descriptors that end together: when each has, and the flush behind the writes.
struct Batch {
  UcxFabric* fabric = nullptr;
  UcxLink* link = nullptr;
  Batch* next = nullptr;
  uint32_t remaining = 0;
  uint32_t count = 0;
  ucs_status_t status = UCS_OK;
  std::array<uint64_t, kMaxBatch> cookies;  // of those that are signaled
};

class UcxFabric final : public Fabric {
 public:
  static Result<std::unique_ptr<Fabric>> make(const UcxOptions& options);
  ~UcxFabric() override;

  const FabricInfo& info() const noexcept override { return info_; }

  Result<std::unique_ptr<FabricMemory>> allocate(size_t size, bool present) override;
  Result<std::unique_ptr<FabricMemory>> register_memory(std::span<std::byte> memory, MemoryKind kind,
                                                        bool shared) override;
  Result<std::vector<std::byte>> export_memory(FabricLink& link, FabricMemory& memory) override;
  Result<std::unique_ptr<FabricRemote>> import_memory(FabricLink& link, std::span<const std::byte> packed_key,
                                                      uint64_t address, size_t size) override;

  Result<std::unique_ptr<FabricLink>> open_link(std::string_view host) override;
  Result<std::vector<std::byte>> address(FabricLink& link) override;
  Status connect(FabricLink& link, std::span<const std::byte> peer_address) override;
  void close(FabricLink& link, bool orderly) override;
  std::string describe(FabricLink& link) override;

  size_t post(FabricLink& link, TransferClass lane, std::span<const Descriptor> batch) override;
  std::span<std::byte> message_place(FabricLink& link, TransferClass lane) override;
  void send(FabricLink& link, TransferClass lane, size_t size) override;

  bool poll(FabricSink& sink) override;
  int event_fd() const noexcept override { return event_fd_; }
  bool arm() override;

  // For what it has made.
  ucp_context_h context() const noexcept { return context_; }
  void forget(UcxLink& link);

 private:
  struct Done {
    uint64_t cookie = 0;
    Errc result = Errc::kOk;
  };

  UcxFabric() = default;
  Status start(const UcxOptions& options);
  Result<std::unique_ptr<FabricMemory>> map(ucp_mem_map_params_t& params);
  Status connect_lane(UcxLane& lane, const void* worker_address, bool peer_errors);
  void fail(UcxLink& link, ucs_status_t status);
  void close_endpoints(UcxLink& link);
  bool look_at_closing(UcxLink& link);
  void end_of(Batch& batch, ucs_status_t status);
  Batch& take_batch(UcxLink& link);
  static void follow(Batch& batch, ucs_status_ptr_t request);
  void flush_writes(UcxLane& lane);
  void give_back(MessagePlace& place);

  static void on_error(void* lane, ucp_ep_h endpoint, ucs_status_t status);
  static ucs_status_t on_message(void* fabric, const void* header, size_t header_size, void* data, size_t size,
                                 const ucp_am_recv_param_t* param);
  static void on_batch(void* request, ucs_status_t status, void* batch);
  static void on_sent(void* request, ucs_status_t status, void* place);

  FabricInfo info_;
  bool shared_memory_ = false;  // nothing but posix and sysv may be chosen
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;
  std::vector<std::byte> worker_address_;

  SlotTable<UcxLink*> links_;
  RingQueue<Done> done_;
  RingQueue<SlotId> failed_;
  std::vector<UcxLink*> closing_;
  std::vector<UcxLane*> unflushed_;
  bool ending_ = false;         // the worker is being destroyed: links are gone
  FabricSink* sink_ = nullptr;  // while poll() runs

  std::vector<std::unique_ptr<Batch>> batches_;
  Batch* free_batches_ = nullptr;
  std::vector<std::unique_ptr<MessagePlace>> places_;
  MessagePlace* free_places_ = nullptr;
};

}  // namespace genie::datapath::ucx
