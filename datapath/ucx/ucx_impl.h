// UcxFabric: the implementation behind make_ucx_fabric(). Internal to this folder.
//
// ucx_fabric.cc: context, worker, progress. ucx_memory.cc: regions and keys. ucx_link.cc: links and their end. ucx_post.cc:
// transfers by UCX's own puts and gets, and messages. ucx_carry.cc: transfers that travel as active messages.
//
// Carried transfers: where UCX has no device that writes and reads remote memory (TCP), it would put and get by messages of
// its own, whose receiver believes every address, and aborts when a writer dies while its puts are being acknowledged.
// There the same is done here, by active messages that are always sent eagerly, so that UCX answers none of them:
//   write    the bytes behind a place (grant, offset); the receiver checks it, copies, and tells by and by how many it placed
//   pieces   small writes that were posted since the last poll(), and a message that comes after them, in one
//   read     a place and the number of the read; the owner checks it and sends the bytes as one answer
// Invariants:
// - A lane's active messages (messages too) go over one UCP endpoint with one lane, in order: numbered, checked on arrival.
// - Nothing is sent from within a callback of UCX: it would overtake what UCX has queued.
// - An active message's header and bytes stay where they are until UCX has sent it (Carried::in_ucx).
// - A peer can hold at most kMaxReads answers of a lane in flight, and one word of placement.
#pragma once

#include <ucp/api/ucp.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "datapath/base/ring_queue.h"
#include "datapath/base/slot_table.h"
#include "datapath/ucx/ucx_fabric.h"

namespace genie::datapath::ucx {

using namespace genie::datapath::net;

enum ActiveMessage : unsigned { kMessageId = 1, kPiecesId, kWriteId, kReadId, kAnswerId, kPlacedId };
inline constexpr size_t kMessageBytes = 8192;
inline constexpr size_t kChunkBytes = size_t{512} << 10;
inline constexpr uint32_t kMaxInFlight = 64;  // of pieces; the others have bounds of their own
inline constexpr uint32_t kMaxLarge = 8;
// Of carried writes: more would fill the sockets no better, and what is small waits for them, as both ends have one thread for all
// classes.
inline constexpr uint32_t kMaxCarriedWrites = 4;
inline constexpr size_t kMaxBatch = 32;
inline constexpr uint32_t kMaxReads = 16;               // carried ones, per lane
inline constexpr size_t kPieceBytes = size_t{4} << 10;  // up to which copying is cheaper than a system call
inline constexpr size_t kGatherBytes = size_t{32} << 10;

Errc errc_of(ucs_status_t status) noexcept;
Status status_of(ucs_status_t status, const char* what);

// In front of every active message: whose it is. The nonce was told to the peer in the link's address, so that nobody else
// can speak on the link.
struct MessageTag {
  uint32_t link = 0;  // its slot, and in the lowest two bits the lane
  uint32_t generation = 0;
  uint64_t nonce = 0;
  uint32_t number = 0;  // of the active messages of this lane
  uint32_t placed = 0;  // how many of the receiver's writes on this lane lie in the sender's memory
};

// In the memory of whoever gets it: `grant` is a slot among those of the link.
struct Place {
  uint32_t grant = 0;
  uint32_t generation = 0;
  uint64_t offset = 0;
};

// In front of each piece; the next one follows its bytes, rounded up to its alignment.
struct PieceHeader {
  Place place;
  uint32_t size = 0;
  uint32_t message = 0;  // 1: it is one, and `place` means nothing
};

struct WriteHeader {
  MessageTag tag;
  Place place;
};

struct ReadHeader {
  MessageTag tag;
  Place place;
  uint64_t size = 0;
  uint32_t read = 0;  // comes back with the answer
  uint32_t read_generation = 0;
};

struct AnswerHeader {
  MessageTag tag;
  uint32_t read = 0;
  uint32_t read_generation = 0;
};
static_assert(sizeof(MessageTag) == 24 && sizeof(WriteHeader) == 40 && sizeof(ReadHeader) == 56);

// In front of UCX's packed key.
struct KeyPrefix {
  uint32_t grant = 0;
  uint32_t generation = 0;
  uint32_t host = 0;  // memory that the CPU can touch
  uint32_t reserved = 0;
};

inline constexpr uint32_t kLaneBits = 2;
static_assert(kLaneCount <= 1U << kLaneBits);

class UcxFabric;

// Memory as UCX knows it. It may outlive its FabricMemory for as long as answers are being sent from it.
struct Mapping {
  Mapping() = default;
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  ucp_context_h context = nullptr;
  ucp_mem_h handle = nullptr;
  uint32_t answers = 0;
  bool dropped = false;  // its FabricMemory is gone
  Buffer block;          // what it lies in, if that is ours
};

struct UcxMemory final : FabricMemory {
  ~UcxMemory() override;
  struct Grant {
    SlotId link;
    SlotId slot;
  };
  UcxFabric* fabric = nullptr;
  std::unique_ptr<Mapping> mapping;  // none where UCX was not asked
  bool lasting = false;              // ours: it can be kept until its last answer has left
  std::vector<Grant> grants;         // the links that may address it
  std::vector<std::byte> packed_key;
};

struct UcxRemote final : FabricRemote {
  ~UcxRemote() override;
  Place place;
  uint64_t base = 0;  // the peer's address of it
  bool carried = false;
  std::array<ucp_rkey_h, kLaneCount> keys{};  // unless carried
};

using Copy = std::vector<std::byte>;

// Buffers of one size; a few are kept.
class CopyPool {
 public:
  explicit CopyPool(size_t size) noexcept : size_(size) {}
  std::unique_ptr<Copy> take();
  void give_back(std::unique_ptr<Copy> copy);

 private:
  const size_t size_;
  std::vector<std::unique_ptr<Copy>> free_;
};

// A transfer or an answer on its way as an active message, or the word that tells of placed writes.
struct Carried {
  enum class Kind : uint8_t { kPieces, kWrite, kRead, kAnswer, kPlaced };

  UcxFabric* fabric = nullptr;
  struct UcxLink* link = nullptr;
  uint32_t lane = 0;
  Kind kind = Kind::kWrite;
  bool in_ucx = false;   // UCX still sends it
  bool awaited = false;  // what the peer says to it is missing
  bool signaled = false;
  Errc result = Errc::kOk;
  SlotId slot;
  uint64_t cookie = 0;
  std::byte* local = nullptr;
  size_t size = 0;
  Mapping* mapping = nullptr;  // that an answer is sent from
  std::unique_ptr<Copy> copy;  // that an answer, or pieces, were copied to
  union {
    WriteHeader write;
    ReadHeader read;
    AnswerHeader answer;
    MessageTag tag;
  };

  Carried() : read() {}
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

// A carried write; a piece is done when the peer has it, others when UCX has let go of their bytes too.
struct Written {
  SlotId carried;
  uint64_t cookie = 0;
  bool signaled = false;
};

struct UcxLane {
  ucp_ep_h endpoint = nullptr;
  struct UcxLink* link = nullptr;
  MessageTag tag;  // of the next active message that leaves here
  MessagePlace* place = nullptr;
  Batch* writes = nullptr;  // that were posted since the last poll() and wait for their flush

  uint32_t large = 0;       // transfers in flight that are no pieces
  uint32_t received = 0;    // active messages
  uint32_t placed = 0;      // the peer's writes that lie in memory here; it was told of tag.placed
  bool owes = false;        // among those that poll() tells the peer of
  uint64_t owed_since = 0;  // a poll()
  uint64_t owed_since_ns = 0;
  bool telling = false;       // the last word of it has not left yet
  uint32_t answers = 0;       // to the peer's reads, not sent yet
  Carried* pieces = nullptr;  // that have not left yet, of `gathered` bytes
  size_t gathered = 0;
  uint32_t confirmed = 0;  // own writes that the peer has placed, and those that it has not
  RingQueue<Written> written;
  std::vector<SlotId> reads;  // own ones without an answer
};

struct UcxLink final : FabricLink {
  ~UcxLink() override;
  UcxFabric* fabric = nullptr;
  SlotId slot;
  uint64_t nonce = 0;
  bool peer_errors = false;  // UCX tells when the peer dies, and endpoints can be closed by force
  bool carries = false;      // transfers travel as active messages
  bool failed = false;
  bool closing = false;
  bool forced = false;
  bool deaf = false;                      // what its peer says is not looked at any more
  Errc why = Errc::kOk;                   // it failed
  uint32_t outstanding = 0;               // UCX requests of batches, messages and carried transfers
  uint32_t awaited = 0;                   // carried transfers that the peer has still to say something to
  SlotTable<UcxMemory*> granted;          // memory that the peer may address
  std::vector<ucs_status_ptr_t> closers;  // flushes and closes of endpoints, which poll() looks at
  std::array<UcxLane, kLaneCount> lanes;
};

// Descriptors that end together: when each has, and the flush behind the writes.
struct Batch {
  UcxFabric* fabric = nullptr;
  UcxLane* lane = nullptr;
  Batch* next = nullptr;
  uint32_t remaining = 0;
  uint32_t posted = 0;
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
  void forget(UcxLink& link);
  void forget(UcxMemory& memory);

 private:
  struct Done {
    uint64_t cookie = 0;
    Errc result = Errc::kOk;
  };

  // A read of a peer that was checked and is answered once UCX's callbacks are through.
  struct Request {
    SlotId link;
    uint32_t lane = 0;
    ReadHeader header;
  };

  UcxFabric() = default;
  Status start(const UcxOptions& options);
  Status handle_active_messages();
  Result<std::unique_ptr<FabricMemory>> map(ucp_mem_map_params_t& params);
  Status connect_lane(UcxLane& lane, const void* worker_address, bool peer_errors);
  // `what` is a literal.
  void fail(UcxLink& link, Errc why, const char* what);
  void close_endpoints(UcxLink& link);
  bool look_at_closing(UcxLink& link);
  void end_of(Batch& batch, ucs_status_t status);
  Batch& take_batch(UcxLane& lane);
  static void follow(Batch& batch, ucs_status_ptr_t request);
  void flush_writes(UcxLane& lane);
  void post_natively(UcxLane& lane, size_t index, const Descriptor& item);
  void give_back(MessagePlace& place);
  // The lane that an active message arrived on, or null when it is not to be looked at.
  UcxLane* arrived(const void* header, size_t header_size, size_t wanted_size, const ucp_am_recv_param_t* param);

  bool gather(UcxLane& lane, const PieceHeader& header, const std::byte* bytes);
  void send_pieces(UcxLane& lane);
  void carry(UcxLink& link, uint32_t lane, const Descriptor& item, bool piece);
  Carried& take_carried(UcxLink& link, uint32_t lane, Carried::Kind kind);
  void send_carried(Carried& carried, const void* bytes, size_t size);
  void settle(Carried& carried);
  void drop_carried(UcxLink& link);
  bool place(UcxLane& lane, const Place& where, const void* bytes, size_t size);
  bool confirm(UcxLane& lane, uint32_t placed);
  void end_awaited(Carried& carried, Errc result);
  void end_written(UcxLink& link, const Written& written, Errc result);
  UcxMemory* find_granted(UcxLink& link, const Place& place, uint64_t size);
  void refuse(UcxLink& link);
  void answer_reads();
  void answer(UcxLink& link, uint32_t lane, const ReadHeader& request);
  void tell_placed();
  void owe(UcxLane& lane);

  static void on_error(void* lane, ucp_ep_h endpoint, ucs_status_t status);
  static ucs_status_t on_message(void* fabric, const void* header, size_t header_size, void* data, size_t size,
                                 const ucp_am_recv_param_t* param);
  static ucs_status_t on_pieces(void* fabric, const void* header, size_t header_size, void* data, size_t size,
                                const ucp_am_recv_param_t* param);
  static ucs_status_t on_write(void* fabric, const void* header, size_t header_size, void* data, size_t size,
                               const ucp_am_recv_param_t* param);
  static ucs_status_t on_read(void* fabric, const void* header, size_t header_size, void* data, size_t size,
                              const ucp_am_recv_param_t* param);
  static ucs_status_t on_answer(void* fabric, const void* header, size_t header_size, void* data, size_t size,
                                const ucp_am_recv_param_t* param);
  static ucs_status_t on_placed(void* fabric, const void* header, size_t header_size, void* data, size_t size,
                                const ucp_am_recv_param_t* param);
  static void on_carried(void* request, ucs_status_t status, void* carried);
  static void on_batch(void* request, ucs_status_t status, void* batch);
  static void on_sent(void* request, ucs_status_t status, void* place);

  FabricInfo info_;
  bool reaches_devices_ = false;  // memory that is not the host's
  bool shared_memory_ = false;    // nothing but posix and sysv may be chosen
  bool networks_ = true;          // some that leads to other machines may be
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;
  std::vector<std::byte> worker_address_;

  SlotTable<UcxLink*> links_;
  RingQueue<Done> done_;
  RingQueue<SlotId> failed_;
  std::vector<UcxLink*> closing_;
  std::vector<UcxLane*> unflushed_;
  std::vector<UcxLane*> gathering_;  // have pieces
  RingQueue<UcxLane*> owing_;        // their peers are to be told of placed writes
  uint64_t polls_ = 0;
  RingQueue<Request> requests_;
  SlotTable<Carried> carried_;
  std::vector<std::unique_ptr<Mapping>> dropped_;  // until their last answer has left
  CopyPool answer_copies_{kChunkBytes};
  CopyPool gather_copies_{kGatherBytes};
  bool ending_ = false;         // the worker is being destroyed: links are gone
  FabricSink* sink_ = nullptr;  // while poll() runs

  std::vector<std::unique_ptr<Batch>> batches_;
  Batch* free_batches_ = nullptr;
  std::vector<std::unique_ptr<MessagePlace>> places_;
  MessagePlace* free_places_ = nullptr;
};

}  // namespace genie::datapath::ucx
