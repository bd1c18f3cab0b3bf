#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "control.grpc.pb.h"
#include "health.grpc.pb.h"
#include "src/control/control.h"
#include "src/control/convert.h"

namespace genie::control {
namespace {

class GrpcControlClient final : public ControlClient {
 public:
  GrpcControlClient(std::string uri, const std::string& address, const std::string& token)
      : uri_(std::move(uri)), bearer_(token.empty() ? std::string() : "Bearer " + token) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(static_cast<int>(kMaxTemplateBytes));
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    // A connection of its own: another session's failed attempts do not slow this one down.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    // An idle session keeps no connection here: it costs the node memory, and the next call makes a new one.
    constexpr int kIdleMs = 10'000;
    arguments.SetInt(GRPC_ARG_CLIENT_IDLE_TIMEOUT_MS, kIdleMs);
    channel_ = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::Control::NewStub(channel_);
  }

  Result<OpenAnswer> open(const OpenOrder& order, Deadline deadline) override {
    v1::OpenRequest request;
    request.set_protocol_version(order.protocol_version);
    request.set_genie_version(order.genie_version);
    request.set_torch_version(order.torch_version);
    request.set_schema_hash(order.schema_hash);
    request.set_operator_count(order.operator_count);
    request.set_transport(order.transport);
    request.set_client_name(order.client_name);
    request.set_progress_timeout_ms(order.progress_timeout_ms);
    v1::OpenReply reply;
    GENIE_TRY(call(deadline, "opening a session",
                   [&](grpc::ClientContext& context) { return stub_->Open(&context, request, &reply); }));
    OpenAnswer answer;
    answer.session_id = reply.session_id();
    answer.node_name = reply.node_name();
    answer.genie_version = reply.genie_version();
    answer.torch_version = reply.torch_version();
    answer.devices = read_devices(reply);
    for (const v1::DataOffer& offer : reply.data()) answer.data.push_back({offer.transport(), offer.address()});
    answer.host_id = reply.host_id();
    answer.data_token = reply.data_token();
    answer.in_flight_max = reply.in_flight_max();
    answer.templates_max = reply.templates_max();
    answer.template_bytes_max = reply.template_bytes_max();
    for (const v1::Operator& op : reply.operators()) {
      answer.operators.push_back({op.name(), op.overload(), op.schema_hash()});
    }
    return answer;
  }

  Status close(std::string_view session_id, Deadline deadline) override {
    v1::CloseRequest request;
    request.set_session_id(std::string(session_id));
    v1::CloseReply reply;
    return call(deadline, "closing a session",
                [&](grpc::ClientContext& context) { return stub_->Close(&context, request, &reply); });
  }

  Result<uint64_t> register_template(std::string_view session_id, std::span<const std::byte> serialized,
                                     std::span<const uint64_t> forget, Deadline deadline) override {
    if (serialized.size() > kMaxTemplateBytes) {
      return Status(Errc::kQuotaExceeded, "a template of " + std::to_string(serialized.size()) +
                                              " bytes; the limit is " + std::to_string(kMaxTemplateBytes) +
                                              ": flush more often, with smaller limits");
    }
    v1::RegisterTemplateRequest request;
    request.set_session_id(std::string(session_id));
    request.set_serialized(serialized.data(), serialized.size());
    request.mutable_forget()->Add(forget.begin(), forget.end());
    v1::RegisterTemplateReply reply;
    GENIE_TRY(call(deadline, "registering a template",
                   [&](grpc::ClientContext& context) { return stub_->RegisterTemplate(&context, request, &reply); }));
    return reply.template_id();
  }

  Result<NodeReport> report(Deadline deadline) override {
    v1::StatusRequest request;
    v1::StatusReply reply;
    GENIE_TRY(call(deadline, "asking for the status",
                   [&](grpc::ClientContext& context) { return stub_->Status(&context, request, &reply); }));
    NodeReport report;
    report.node_name = reply.node_name();
    report.genie_version = reply.genie_version();
    report.torch_version = reply.torch_version();
    report.devices = read_devices(reply);
    report.transport = reply.transport();
    report.draining = reply.draining();
    report.sessions = reply.sessions();
    report.sessions_opened = reply.sessions_opened();
    report.storages = reply.storages();
    report.storage_bytes = reply.storage_bytes();
    report.templates = reply.templates();
    report.in_flight = reply.in_flight();
    report.regions = reply.regions();
    report.region_bytes = reply.region_bytes();
    report.records_executed = reply.records_executed();
    report.blobs = reply.blobs();
    report.blob_bytes = reply.blob_bytes();
    report.blob_known_bytes = reply.blob_known_bytes();
    return report;
  }

  Result<bool> healthy(Deadline deadline) override {
    const auto stub = grpc::health::v1::Health::NewStub(channel_);
    grpc::health::v1::HealthCheckRequest request;
    grpc::health::v1::HealthCheckResponse reply;
    GENIE_TRY(call(deadline, "asking for the health",
                   [&](grpc::ClientContext& context) { return stub->Check(&context, request, &reply); }));
    return reply.status() == grpc::health::v1::HealthCheckResponse::SERVING;
  }

 private:
  template <typename Call>
  Status call(Deadline deadline, std::string_view what, const Call& call) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::nanoseconds(deadline.left_ns()));
    if (!bearer_.empty()) context.AddMetadata(kTokenKey, bearer_);
    const grpc::Status status = call(context);
    if (status.ok()) return {};
    return from_grpc(status, context, uri_ + ": " + std::string(what));
  }

  const std::string uri_;
  const std::string bearer_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Control::Stub> stub_;
};

}  // namespace

Result<std::unique_ptr<ControlClient>> ControlClient::make(std::string_view uri, std::string token) {
  Result<std::string> address = grpc_address(uri);
  GENIE_TRY(address.status());
  keep_grpc();
  return std::unique_ptr<ControlClient>(std::make_unique<GrpcControlClient>(std::string(uri), *address, token));
}

}  // namespace genie::control
