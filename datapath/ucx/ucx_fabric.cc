// Context, worker, progress.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/memory/pages.h"
#include "datapath/memory/populate.h"
#include "datapath/ucx/route.h"
#include "datapath/ucx/tls_list.h"
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

bool is_set(const char* variable) { return std::getenv(variable) != nullptr; }

// The transports that UCX may choose from, as it is told.
std::string transports(const UcxOptions& options) {
  const char* const variable = std::getenv("UCX_TLS");
  return !options.tls.empty() ? options.tls : variable != nullptr ? variable : "all";
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
  networks_ = may_use_network(tls);
  Config config;
  if (config.status() != UCS_OK) return status_of(config.status(), "its settings cannot be read; look at UCX_*");
  if (!options.tls.empty()) config.set("TLS", options.tls.c_str());
  // They are one setting: the second must not be less than the first. UCX warns of settings of transports that it does not use.
  if (may_use_tcp(tls) && !is_set("UCX_TCP_TX_SEG_SIZE") && !is_set("UCX_TCP_RX_SEG_SIZE")) {
    config.set("TX_SEG_SIZE", "1m");
    config.set("RX_SEG_SIZE", "1m");
  }
  if (may_use_tcp(tls) && !is_set("UCX_NET_DEVICES")) {
    if (const std::string device = device_towards(options.towards); !device.empty()) {
      config.set("NET_DEVICES", device.c_str());
    }
  }
  // One lane per endpoint, whatever is set: active messages of several would overtake each other.
  config.set("MAX_EAGER_LANES", "1");
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
  ucp_context_attr_t attributes{};
  attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
  reaches_devices_ = ucp_context_query(context_, &attributes) == UCS_OK &&
                     (attributes.memory_types & ~UCS_BIT(UCS_MEMORY_TYPE_HOST)) != 0;
  ucp_worker_params_t worker{};
  worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  status = ucp_worker_create(context_, &worker, &worker_);
  if (status != UCS_OK) return status_of(status, "no worker");
  status = ucp_worker_get_efd(worker_, &event_fd_);
  if (status != UCS_OK) return status_of(status, "no descriptor to sleep on");
  GENIE_TRY(handle_active_messages());
  ucp_address_t* address = nullptr;
  size_t size = 0;
  status = ucp_worker_get_address(worker_, &address, &size);
  if (status != UCS_OK) return status_of(status, "no address");
  const auto* const bytes = reinterpret_cast<const std::byte*>(address);
  worker_address_.assign(bytes, bytes + size);
  ucp_worker_release_address(worker_, address);
  return {};
}

Status UcxFabric::handle_active_messages() {
  struct Handler {
    ActiveMessage id;
    ucp_am_recv_callback_t callback;
  };
  constexpr std::array<Handler, 6> kHandlers = {{{kMessageId, &UcxFabric::on_message},
                                                 {kPiecesId, &UcxFabric::on_pieces},
                                                 {kWriteId, &UcxFabric::on_write},
                                                 {kReadId, &UcxFabric::on_read},
                                                 {kAnswerId, &UcxFabric::on_answer},
                                                 {kPlacedId, &UcxFabric::on_placed}}};
  for (const Handler& each : kHandlers) {
    ucp_am_handler_param_t handler{};
    handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                         UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
    handler.id = each.id;
    handler.flags = UCP_AM_FLAG_WHOLE_MSG;
    handler.cb = each.callback;
    handler.arg = this;
    const ucs_status_t status = ucp_worker_set_am_recv_handler(worker_, &handler);
    if (status != UCS_OK) return status_of(status, "no active messages");
  }
  return {};
}

UcxFabric::~UcxFabric() {
  ending_ = true;
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  dropped_.clear();
  if (context_ != nullptr) ucp_cleanup(context_);
}

// -- Progress ------------------------------------------------------------------------------------------------------------

bool UcxFabric::poll(FabricSink& sink) {
  while (!unflushed_.empty()) flush_writes(*unflushed_.back());
  while (!gathering_.empty()) send_pieces(*gathering_.back());
  tell_placed();
  sink_ = &sink;
  bool moved = ucp_worker_progress(worker_) != 0;
  sink_ = nullptr;
  answer_reads();
  while (!done_.empty()) {
    const Done done = done_.pop();
    sink.on_done(done.cookie, done.result);
    moved = true;
  }
  while (!failed_.empty()) {
    const SlotId slot = failed_.pop();
    UcxLink** const link = links_.find(slot.index, slot.generation);
    if (link == nullptr || (*link)->owner == nullptr) continue;
    sink.on_failed(**link, Status((*link)->why, (*link)->why == Errc::kProtocol ? "the peer broke the protocol"
                                                                                : "UCX says that it broke"));
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
  if (!done_.empty() || !failed_.empty() || !unflushed_.empty() || !gathering_.empty() || !owing_.empty()) return false;
  return ucp_worker_arm(worker_) == UCS_OK;
}

}  // namespace ucx
}  // namespace genie::datapath
