// Executor: runs templates on a device with libtorch. This header is free of torch.
//
// Purpose: a Store holds one session's storages on one device and replays compiled programs over them, in program order,
//   on real tensors with true aliasing, below autograd.
// Thread-safety: compile() may be called from any thread. A Store belongs to one thread at a time (its device worker).
// Ownership: adopted memory is owned by the store until the storage is freed; byte views are valid until the next call.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "genie/status.h"

namespace genie::executor {

// The unit of memory: an id and the version that a fragment expects or makes.
struct StorageVersion {
  uint64_t id = 0;
  uint32_t version = 0;
};

// Ids from here on name the session's generators, by their number: free() ends one. No storage has such an id.
inline constexpr uint64_t kGeneratorIds = uint64_t{1} << 63;

// One storage slot of an invocation, in the order of the template's slot table (transient slots are not listed).
struct SlotBinding {
  uint64_t id = 0;
  uint32_t version_in = 0;   // version that must be there (0 with a storage that does not exist yet)
  uint32_t version_out = 0;  // version after the fragment; equal to version_in where it only reads
  uint64_t size_bytes = 0;   // of a storage that does not exist yet
};

// A template that was verified, decoded and resolved against this process's operators. Immutable, shared by invocations.
class Program;

// What a Report record asks for: metadata of values whose shapes the client could not know.
struct ReportedTensor {
  bool defined = true;
  int32_t dtype = 0;  // c10::ScalarType
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  int64_t storage_offset = 0;
  uint64_t storage_bytes = 0;
};

struct InvokeOutcome {
  // OK, or what the first failing record raised: its text names the operator and its operands' shapes.
  Status status;
  int64_t failed_record = -1;  // -1 with an error: what the invocation names was not there, nothing ran
  uint64_t executed_records = 0;
  std::vector<ReportedTensor> reported;
  uint64_t unshared_bytes = 0;  // copied because a record was to write what somebody else holds
  uint64_t claimed_bytes = 0;   // copied because a record was to write memory that was given for reading,
                                // or that others hold by its content
};

// A range of a storage. While the holder lives the bytes stay as they are: a record that is to write them makes the store
// copy the storage first. Whoever finds itself the last holder may write them.
struct SharedBytes {
  std::span<std::byte> bytes;
  std::shared_ptr<const void> holder;  // null: the bytes are valid until the next call, and not to be written
};

// Whether `holder` is the only one left. What others did with the bytes happened before.
inline bool is_only_holder(const std::shared_ptr<const void>& holder) noexcept {
  if (holder.use_count() != 1) return false;
  std::atomic_thread_fence(std::memory_order_acquire);
  return true;
}

struct StoreOptions {
  int threads = 1;                    // intra-op threads; set on the calling thread
  uint64_t quota_bytes = UINT64_MAX;  // memory of all storages, and what is held besides
  // Memory of the session that is counted outside of the store. May be null.
  const std::atomic<uint64_t>* held_besides_bytes = nullptr;
  // Incremented after every record: the node's proof of progress. May be null.
  std::atomic<uint64_t>* progress = nullptr;
  size_t storages_max = size_t{1} << 20;  // poisoned ones count: what a client's ids may cost is bounded
  size_t generators_max = 1024;
};

// What lets others hold the same memory, because they brought the same bytes. Held by the memory's owner too, so that it lives as
// long as anything that reads them.
class Content {
 public:
  virtual ~Content() = default;
  // Before the first write. True: nobody else holds the memory, and nobody will. False: write to a copy.
  virtual bool claim() noexcept = 0;
};

// Memory handed to a store with its releaser.
struct HostMemory {
  std::byte* data = nullptr;
  size_t size = 0;
  bool writable = true;  // false: a record that writes it makes a private copy first
  std::shared_ptr<void> owner;
  bool counted_besides = false;  // in StoreOptions::held_besides_bytes
  std::shared_ptr<Content> content;
};

// Where fresh results may be born, so that whoever wants them finds them where it can reach them.
class Birthplace {
 public:
  virtual ~Birthplace() = default;
  // Memory for the first content of a storage, aligned to 64; without data: it may be born anywhere. Called on the store's
  // thread, perhaps more than once for one storage: an operator may ask for further memory of the same size.
  virtual HostMemory place(uint64_t storage, size_t size) noexcept = 0;
};

// Which operators besides PyTorch's a template may name.
enum class Trust : uint8_t {
  kLibraries,  // those of the libraries that the process was told to load: who sends the template is somebody else
  kProcess,    // all that the process has: it is its own client
};
// Verifies and resolves a serialized template (protocol/template.fbs). Never aborts on hostile bytes: kProtocol;
// kNotFound names an operator that this process does not have, kVersionMismatch one with another schema.
Result<std::shared_ptr<const Program>> compile(std::span<const std::byte> serialized, Trust trust = Trust::kLibraries);
// The code's fingerprint as the client computes it (XXH3-128, low 64 bits).
uint64_t fingerprint(const Program& program);
// How many parameters and listed slots an invocation has to bring; hostile counts are refused before invoke().
size_t param_count(const Program& program);
size_t bound_slot_count(const Program& program);
// The numbers of the invocation it was made from; an invocation sends only those that differ.
std::span<const int64_t> default_params(const Program& program);

class Store {
 public:
  static std::unique_ptr<Store> make(StoreOptions options);
  virtual ~Store() = default;

  // kQuotaExceeded when so many more bytes do not fit.
  virtual Status admit(uint64_t size_bytes) const = 0;
  // A new storage whose initial content is `memory`. kAlreadyExists, kQuotaExceeded.
  virtual Status adopt(StorageVersion storage, HostMemory memory) = 0;
  // Runs `program`. `params` are all parameter values (defaults patched by the caller). New storages named in `placed` are
  // born in memory of `birthplace` where their operators take it (see use_placed_memory).
  virtual InvokeOutcome invoke(const Program& program, std::span<const SlotBinding> slots,
                               std::span<const int64_t> params, std::span<const uint64_t> placed = {},
                               Birthplace* birthplace = nullptr) = 0;
  // The record was not run because an earlier one of its stream failed: poisons what it would have written.
  virtual void poison(const Program& program, std::span<const SlotBinding> slots, const Status& why) = 0;
  // Bytes [offset, offset + size) of a storage: kNotFound, kStale (another version), kOutOfRange, kPoisoned (with the
  // original error).
  virtual Result<std::span<const std::byte>> bytes(StorageVersion storage, uint64_t offset, uint64_t size) = 0;
  // Likewise, with a holder where sharing is right: not memory that was only lent, not a range so small that its holder would
  // keep mostly other bytes alive, nor one that kernels would find at an odd address. With `once`, not while there is
  // another holder either.
  virtual Result<SharedBytes> share(StorageVersion storage, uint64_t offset, uint64_t size, bool once) = 0;
  // Gives the storage bytes of its own if it still has those at `lent`; how many were copied. Without memory for them the
  // storage is poisoned.
  virtual uint64_t keep(uint64_t id, const std::byte* lent) = 0;
  // Of a storage or a generator. Unknown ids are ignored (a storage that never came to life).
  virtual void free(uint64_t id) = 0;

  virtual uint64_t bytes_in_use() const = 0;
  virtual size_t storage_count() const = 0;
};

// Name and version of the operator set of this process, for the handshake: libtorch's version and a hash over all schemas.
struct OperatorSet {
  std::string torch_version;
  uint64_t schema_hash = 0;
  uint32_t count = 0;
};
OperatorSet operator_set();

// Loads a shared library that defines operators (TORCH_LIBRARY), for the rest of the process's life: whoever may send templates
// may run them, so their kernels must check their operands. kConfig with the loader's reason. One whose initializers throw ends
// the process with status 2 and the reason: nothing can catch that. For a program's main function.
Status load_operator_library(const std::string& path);
// What the libraries loaded so define, outside of aten.
struct LibraryOperator {
  std::string name;      // "mine::scale"
  std::string overload;  // "" or "out"
  uint64_t schema_hash = 0;
};
std::vector<LibraryOperator> library_operators();

// Puts an allocator over libtorch's for CPU memory, once and for the process: one that lets results be born where a Store was
// told to. Without it they are born in ordinary memory. For programs that own libtorch, as genie-node does.
void use_placed_memory();

// Intra-op threads that this process would use by default.
int default_threads();

}  // namespace genie::executor
