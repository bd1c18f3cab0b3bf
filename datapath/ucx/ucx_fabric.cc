// Context, worker, memory, progress.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/memory/pages.h"
#include "datapath/memory/populate.h"
#include "datapath/ucx/route.h"
#include "datapath/ucx/ucx_impl.h"
#include "datapath/ucx/ucx_log.h"

namespace genie::datapath {

bool ucx_compiled_in() noexcept { return true; }

Result<std::unique_ptr<net::Fabric>> make_ucx_fabric(const UcxOptions& options) {
  return ucx::UcxFabric::make(options);
}

Result<std::unique_ptr<Transport>> make_ucx_transport(const UcxOptions& options) {
  Result<std::unique_ptr<net::Fabric>> fabric = make_ucx_fabric(options);
  GENIE_TRY(fabric.status());
  return make_net_transport(std::move(*fabric), options.net);
}

namespace ucx {
namespace {

// Of a packed key that is nonsense UCX may read more than it has: at most a byte-sized length for each of 64 domains.
constexpr size_t kKeyPadding = size_t{64} * 256;

bool is_set(const char* variable) { return std::getenv(variable) != nullptr; }

// The transports that UCX may choose from, as it is told.
std::string transports(const UcxOptions& options) {
  const char* const variable = std::getenv("UCX_TLS");
  return !options.tls.empty() ? options.tls : variable != nullptr ? variable : "all";
}

// UCX warns of settings of transports that it does not use.
bool may_use_tcp(const std::string& list) {
  if (list.starts_with('^')) return list.find("tcp") == std::string::npos;
  return list.find("tcp") != std::string::npos || list.find("all") != std::string::npos;
}

bool is_shared_memory(const std::string& list) {
  constexpr std::array<std::string_view, 7> kNames = {"posix", "sysv", "sm", "shm", "cma", "self", "loopback"};
  for (size_t begin = 0, end; begin <= list.size(); begin = end + 1) {
    end = std::min(list.find(',', begin), list.size());
    if (std::ranges::find(kNames, std::string_view(list).substr(begin, end - begin)) == kNames.end()) return false;
  }
  return true;
}

class Config {
 public:
  Config() { status_ = ucp_config_read(nullptr, nullptr, &config_); }
  ~Config() {
    if (config_ != nullptr) ucp_config_release(config_);
  }
  Config(const Config&) = delete;
  Config& operator=(const Config&) = delete;

  ucs_status_t status() const { return status_; }
  const ucp_config_t* get() const { return config_; }
  void set(const char* name, const char* value) { (void)ucp_config_modify(config_, name, value); }

 private:
  ucp_config_t* config_ = nullptr;
  ucs_status_t status_;
};

}  // namespace

Errc errc_of(ucs_status_t status) noexcept {
  switch (status) {
    case UCS_OK: return Errc::kOk;
    case UCS_ERR_NO_MEMORY: return Errc::kOutOfMemory;
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR: return Errc::kInvalidArgument;
    case UCS_ERR_UNSUPPORTED: return Errc::kUnsupported;
    case UCS_ERR_UNREACHABLE: return Errc::kUnreachable;
    case UCS_ERR_CANCELED: return Errc::kCancelled;
    case UCS_ERR_NO_DEVICE: return Errc::kConfig;
    default: return Errc::kDisconnected;
  }
}

Status status_of(ucs_status_t status, const char* what) {
  return {errc_of(status), std::string("UCX: ") + what + ": " + ucs_status_string(status)};
}

Result<std::unique_ptr<Fabric>> UcxFabric::make(const UcxOptions& options) {
  std::unique_ptr<UcxFabric> fabric(new UcxFabric);
  GENIE_TRY(fabric->start(options));
  return std::unique_ptr<Fabric>(std::move(fabric));
}

Status UcxFabric::start(const UcxOptions& options) {
  take_over_ucx_log();
  info_ = {.name = "ucx",
           .max_message_bytes = kMessageBytes,
           .chunk_bytes = kChunkBytes,
           .max_in_flight = kMaxInFlight,
           .copies = true};
  const std::string tls = transports(options);
  shared_memory_ = is_shared_memory(tls);
  Config config;
  if (config.status() != UCS_OK) return status_of(config.status(), "its settings cannot be read; look at UCX_*");
  if (!options.tls.empty()) config.set("TLS", options.tls.c_str());
  // They are one setting: the second must not be less than the first.
  if (may_use_tcp(tls) && !is_set("UCX_TCP_TX_SEG_SIZE") && !is_set("UCX_TCP_RX_SEG_SIZE")) {
    config.set("TX_SEG_SIZE", "1m");
    config.set("RX_SEG_SIZE", "1m");
  }
  if (may_use_tcp(tls) && !is_set("UCX_NET_DEVICES")) {
    if (const std::string device = device_towards(options.towards); !device.empty()) {
      config.set("NET_DEVICES", device.c_str());
    }
  }
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_RMA | UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.name = "genie";
  ucs_status_t status = ucp_init(&params, config.get(), &context_);
  if (status != UCS_OK) {
    return {Errc::kConfig, "UCX cannot start (" + std::string(ucs_status_string(status)) + ")" +
                               (options.tls.empty() ? std::string() : " with the transports '" + options.tls + "'") +
                               ": 'ucx_info -d' lists what it finds; look at UCX_TLS and UCX_NET_DEVICES"};
  }
  ucp_worker_params_t worker{};
  worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  status = ucp_worker_create(context_, &worker, &worker_);
  if (status != UCS_OK) return status_of(status, "no worker");
  status = ucp_worker_get_efd(worker_, &event_fd_);
  if (status != UCS_OK) return status_of(status, "no descriptor to sleep on");
  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                       UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.flags = UCP_AM_FLAG_WHOLE_MSG;
  handler.cb = &UcxFabric::on_message;
  handler.arg = this;
  status = ucp_worker_set_am_recv_handler(worker_, &handler);
  if (status != UCS_OK) return status_of(status, "no active messages");
  ucp_address_t* address = nullptr;
  size_t size = 0;
  status = ucp_worker_get_address(worker_, &address, &size);
  if (status != UCS_OK) return status_of(status, "no address");
  const auto* const bytes = reinterpret_cast<const std::byte*>(address);
  worker_address_.assign(bytes, bytes + size);
  ucp_worker_release_address(worker_, address);
  return {};
}

UcxFabric::~UcxFabric() {
  ending_ = true;
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  if (context_ != nullptr) ucp_cleanup(context_);
}

// -- Memory --------------------------------------------------------------------------------------------------------------

UcxMemory::~UcxMemory() {
  if (handle != nullptr) (void)ucp_mem_unmap(fabric->context(), handle);
}

UcxRemote::~UcxRemote() {
  for (const ucp_rkey_h key : keys) {
    if (key != nullptr) ucp_rkey_destroy(key);
  }
}

Result<std::unique_ptr<FabricMemory>> UcxFabric::map(ucp_mem_map_params_t& params) {
  auto memory = std::make_unique<UcxMemory>();
  memory->fabric = this;
  ucs_status_t status = ucp_mem_map(context_, &params, &memory->handle);
  if (status != UCS_OK) {
    return Status(status == UCS_ERR_NO_MEMORY ? Errc::kOutOfMemory : errc_of(status),
                  "UCX cannot register " + std::to_string(params.length) + " bytes (" + ucs_status_string(status) +
                      "): with RDMA devices, raise 'ulimit -l'");
  }
  ucp_mem_attr_t attributes{};
  attributes.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS;
  (void)ucp_mem_query(memory->handle, &attributes);
  memory->data = static_cast<std::byte*>(attributes.address);
  memory->size = params.length;
  void* packed = nullptr;
  size_t size = 0;
  status = ucp_rkey_pack(context_, memory->handle, &packed, &size);
  if (status != UCS_OK) return status_of(status, "a key cannot be packed");
  const auto* const bytes = static_cast<const std::byte*>(packed);
  memory->packed_key.assign(bytes, bytes + size);
  ucp_rkey_buffer_release(packed);
  if (size > kMaxPackedKeyBytes) return Status(Errc::kInternal, "UCX packs larger keys than expected");
  return std::unique_ptr<FabricMemory>(std::move(memory));
}

// Through posix and sysv only UCX's own memory can be reached; for devices it is ours, in large pages.
Result<std::unique_ptr<FabricMemory>> UcxFabric::allocate(size_t size, bool present) {
  if (size == 0 || size > SIZE_MAX / 4) return Status(Errc::kInvalidArgument, "size of a region out of range");
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS;
  params.length = size;
  params.flags = UCP_MEM_MAP_NONBLOCK;
  Buffer block;
  if (shared_memory_) {
    params.flags |= UCP_MEM_MAP_ALLOCATE;
  } else {
    Result<Buffer> made = map_block(size);
    GENIE_TRY(made.status());
    block = std::move(*made);
    params.field_mask |= UCP_MEM_MAP_PARAM_FIELD_ADDRESS;
    params.address = block.data();
  }
  Result<std::unique_ptr<FabricMemory>> memory = map(params);
  GENIE_TRY(memory.status());
  if (present) GENIE_TRY(prefault((*memory)->data, size));
  static_cast<UcxMemory&>(**memory).block = std::move(block);
  return memory;
}

Result<std::unique_ptr<FabricMemory>> UcxFabric::register_memory(std::span<std::byte> memory, MemoryKind kind,
                                                                 bool shared) {
  if (!shared) {
    // UCX registers by itself what it needs registered, and remembers it.
    auto local = std::make_unique<UcxMemory>();
    local->fabric = this;
    local->data = memory.data();
    local->size = memory.size();
    return std::unique_ptr<FabricMemory>(std::move(local));
  }
  ucp_mem_map_params_t params{};
  params.field_mask =
      UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
  params.address = memory.data();
  params.length = memory.size();
  params.memory_type = kind == MemoryKind::kCuda ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
  return map(params);
}

Result<std::vector<std::byte>> UcxFabric::export_memory(FabricLink&, FabricMemory& memory) {
  return static_cast<const UcxMemory&>(memory).packed_key;
}

Result<std::unique_ptr<FabricRemote>> UcxFabric::import_memory(FabricLink& base, std::span<const std::byte> packed_key,
                                                               uint64_t, size_t) {
  auto& link = static_cast<UcxLink&>(base);
  if (packed_key.empty() || packed_key.size() > kMaxPackedKeyBytes) {
    return Status(Errc::kProtocol, "a packed key of wrong size");
  }
  std::vector<std::byte> padded(packed_key.size() + kKeyPadding);
  std::memcpy(padded.data(), packed_key.data(), packed_key.size());
  auto remote = std::make_unique<UcxRemote>();
  for (size_t lane = 0; lane < kLaneCount; ++lane) {
    if (link.lanes[lane].endpoint == nullptr) return Errc::kDisconnected;
    const ucs_status_t status = ucp_ep_rkey_unpack(link.lanes[lane].endpoint, padded.data(), &remote->keys[lane]);
    if (status != UCS_OK) return Status(Errc::kProtocol, "UCX does not understand a key of the peer");
  }
  return std::unique_ptr<FabricRemote>(std::move(remote));
}

// -- Progress ------------------------------------------------------------------------------------------------------------

bool UcxFabric::poll(FabricSink& sink) {
  while (!unflushed_.empty()) flush_writes(*unflushed_.back());
  sink_ = &sink;
  bool moved = ucp_worker_progress(worker_) != 0;
  sink_ = nullptr;
  while (!done_.empty()) {
    const Done done = done_.pop();
    sink.on_done(done.cookie, done.result);
    moved = true;
  }
  while (!failed_.empty()) {
    const SlotId slot = failed_.pop();
    UcxLink** const link = links_.find(slot.index, slot.generation);
    if (link == nullptr || (*link)->owner == nullptr) continue;
    sink.on_failed(**link, Status(Errc::kDisconnected, "UCX says that it broke"));
    moved = true;
  }
  std::erase_if(closing_, [&](UcxLink* link) {
    if (!look_at_closing(*link)) return false;
    sink.on_closed(*link);
    return moved = true;
  });
  return moved;
}

bool UcxFabric::arm() {
  if (!done_.empty() || !failed_.empty() || !unflushed_.empty()) return false;
  return ucp_worker_arm(worker_) == UCS_OK;
}

}  // namespace ucx
}  // namespace genie::datapath
