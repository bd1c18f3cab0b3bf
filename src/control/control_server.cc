#include <grpcpp/ext/health_check_service_server_builder_option.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <mutex>
#include <utility>

#include "control.grpc.pb.h"
#include "datapath/base/log.h"
#include "src/control/control.h"
#include "src/control/convert.h"

namespace genie::control {
namespace {

constexpr int kMessageSlack = 1 << 16;  // what surrounds a template in its message
constexpr int kMaxThreads = 32;         // of gRPC, for all clients together

std::chrono::system_clock::time_point wall_clock(Deadline deadline) {
  return std::chrono::system_clock::now() + std::chrono::nanoseconds(deadline.left_ns());
}

// Takes the same time wherever the strings differ.
bool same_secret(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0U : 1U;
  for (size_t i = 0; i < b.size(); ++i) {
    difference |= static_cast<unsigned char>(b[i]) ^ static_cast<unsigned char>(i < a.size() ? a[i] : '\0');
  }
  return difference == 0;
}

class Service final : public v1::Control::Service {
 public:
  Service(ControlHandler& handler, const std::string& token)
      : handler_(handler), expected_(token.empty() ? std::string() : "Bearer " + token) {}

  grpc::Status Open(grpc::ServerContext* context, const v1::OpenRequest* request, v1::OpenReply* reply) override {
    return guarded(*context, [&]() -> genie::Status {
      OpenOrder order;
      order.protocol_version = request->protocol_version();
      order.genie_version = request->genie_version();
      order.torch_version = request->torch_version();
      order.schema_hash = request->schema_hash();
      order.operator_count = request->operator_count();
      order.transport = request->transport();
      order.client_name = request->client_name();
      order.progress_timeout_ms = request->progress_timeout_ms();
      Result<OpenAnswer> answer = handler_.open(order, expected_);
      GENIE_TRY(answer.status());
      reply->set_session_id(answer->session_id);
      reply->set_node_name(answer->node_name);
      reply->set_genie_version(answer->genie_version);
      reply->set_torch_version(answer->torch_version);
      fill_devices(answer->devices, *reply);
      for (const DataOffer& offer : answer->data) {
        v1::DataOffer* data = reply->add_data();
        data->set_transport(offer.transport);
        data->set_address(offer.address);
      }
      reply->set_host_id(answer->host_id);
      reply->set_data_token(answer->data_token);
      reply->set_in_flight_max(answer->in_flight_max);
      reply->set_templates_max(answer->templates_max);
      reply->set_template_bytes_max(answer->template_bytes_max);
      for (const OperatorEntry& entry : answer->operators) {
        v1::Operator* op = reply->add_operators();
        op->set_name(entry.name);
        op->set_overload(entry.overload);
        op->set_schema_hash(entry.schema_hash);
      }
      return {};
    });
  }

  grpc::Status Close(grpc::ServerContext* context, const v1::CloseRequest* request, v1::CloseReply*) override {
    return guarded(*context, [&]() -> genie::Status {
      handler_.close(request->session_id());
      return {};
    });
  }

  grpc::Status RegisterTemplate(grpc::ServerContext* context, const v1::RegisterTemplateRequest* request,
                                v1::RegisterTemplateReply* reply) override {
    return guarded(*context, [&]() -> genie::Status {
      const std::string& bytes = request->serialized();
      if (bytes.size() > kMaxTemplateBytes) {
        return {Errc::kQuotaExceeded, "a template of " + std::to_string(bytes.size()) + " bytes; the limit is " +
                                          std::to_string(kMaxTemplateBytes)};
      }
      const std::span forget(request->forget().data(), static_cast<size_t>(request->forget().size()));
      Result<uint64_t> id = handler_.register_template(request->session_id(), std::as_bytes(std::span(bytes)), forget);
      GENIE_TRY(id.status());
      reply->set_template_id(*id);
      return {};
    });
  }

  grpc::Status Status(grpc::ServerContext* context, const v1::StatusRequest*, v1::StatusReply* reply) override {
    return guarded(*context, [&]() -> genie::Status {
      const NodeReport report = handler_.report();
      reply->set_node_name(report.node_name);
      reply->set_genie_version(report.genie_version);
      reply->set_torch_version(report.torch_version);
      fill_devices(report.devices, *reply);
      reply->set_transport(report.transport);
      reply->set_draining(report.draining);
      reply->set_sessions(report.sessions);
      reply->set_sessions_opened(report.sessions_opened);
      reply->set_storages(report.storages);
      reply->set_storage_bytes(report.storage_bytes);
      reply->set_templates(report.templates);
      reply->set_in_flight(report.in_flight);
      reply->set_regions(report.regions);
      reply->set_region_bytes(report.region_bytes);
      reply->set_records_executed(report.records_executed);
      reply->set_blobs(report.blobs);
      reply->set_blob_bytes(report.blob_bytes);
      reply->set_blob_known_bytes(report.blob_known_bytes);
      return {};
    });
  }

 private:
  // Checks the caller, runs `body`, and keeps what it throws away from gRPC's threads.
  template <typename Body>
  grpc::Status guarded(grpc::ServerContext& context, const Body& body) {
    using genie::Status;
    if (!expected_.empty()) {
      const auto given = context.client_metadata().find(kTokenKey);
      const std::string_view secret = given == context.client_metadata().end()
                                          ? std::string_view()
                                          : std::string_view(given->second.data(), given->second.size());
      if (!same_secret(secret, expected_)) {
        GENIE_LOG_WARN("refused a call from {}: wrong or missing token", context.peer());
        const std::string what = secret.empty() ? "this node wants a token" : "this node wants another token";
        return to_grpc(
            Status(Errc::kUnauthenticated,
                   what + ": name the file that holds it, with GENIE_TOKEN_FILE=FILE or --token-file FILE, or "
                          "give the token itself with the session's options"),
            context);
      }
    }
    try {
      return to_grpc(body(), context);
    } catch (const std::exception& error) {
      GENIE_LOG_ERROR("a control call from {} failed: {}", context.peer(), error.what());
      return to_grpc(Status(Errc::kInternal, error.what()), context);
    }
  }

  ControlHandler& handler_;
  const std::string expected_;  // whoever has it is one identity; without one, everybody who may call is
};

class GrpcControlServer final : public ControlServer {
 public:
  GrpcControlServer(ControlHandler& handler, const ControlServerOptions& options)
      : options_(options), service_(handler, options.token) {}
  ~GrpcControlServer() override {
    constexpr uint64_t kGraceMs = 1000;
    stop(Deadline::after_ms(kGraceMs));
  }

  Status start();
  const std::vector<std::string>& addresses() const override { return addresses_; }
  void set_serving(bool serving) override {
    if (server_ != nullptr) server_->GetHealthCheckService()->SetServingStatus(serving);
  }
  void stop(Deadline deadline) override {
    const std::lock_guard lock(stop_mutex_);
    if (server_ == nullptr) return;
    server_->Shutdown(wall_clock(deadline));
    server_->Wait();
    server_.reset();
  }

 private:
  const ControlServerOptions options_;
  Service service_;
  std::vector<std::string> addresses_;
  std::mutex stop_mutex_;
  std::unique_ptr<grpc::Server> server_;
};

// gRPC removes whatever socket lies at a path; one that a living process listens on must stay.
Status check_free(const std::string& path) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return {Errc::kIo, std::string("cannot make a socket: ") + std::strerror(errno)};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  const int connected = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  ::close(fd);
  if (connected == 0)
    return {Errc::kAlreadyExists, "another process listens on unix:" + path + ": stop it, or choose another path"};
  return {};
}

Status GrpcControlServer::start() {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  grpc::ResourceQuota quota("genie-control");
  quota.SetMaxThreads(kMaxThreads);
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(static_cast<int>(kMaxTemplateBytes) + kMessageSlack);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  std::vector<int> ports(options_.listen.size(), -1);
  for (size_t i = 0; i < options_.listen.size(); ++i) {
    Result<std::string> address = grpc_address(options_.listen[i]);
    GENIE_TRY(address.status());
    if (address->starts_with("unix:")) GENIE_TRY(check_free(address->substr(5)));
    if (options_.token.empty() && !address->starts_with("unix:")) {
      GENIE_LOG_WARN(
          "{} takes sessions from anybody who reaches it, unencrypted: give a --token-file, and keep it to a network "
          "that you trust",
          options_.listen[i]);
    }
    builder.AddListeningPort(*address, grpc::InsecureServerCredentials(), &ports[i]);
  }
  builder.RegisterService(&service_);
  // The socket is never there with other rights, not even for a moment.
  const mode_t before = options_.world_accessible ? ::umask(0) : ::umask(S_IXUSR | S_IRWXG | S_IRWXO);
  server_ = builder.BuildAndStart();
  ::umask(before);
  for (size_t i = 0; i < options_.listen.size(); ++i) {
    const std::string& uri = options_.listen[i];
    if (server_ == nullptr || ports[i] <= 0) {
      return {Errc::kIo, "cannot listen on " + uri + ": is the address in use, or the folder missing or not writable?"};
    }
    addresses_.push_back(uri.starts_with("tcp://") ? uri.substr(0, uri.rfind(':') + 1) + std::to_string(ports[i])
                                                   : uri);
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<ControlServer>> ControlServer::start(const ControlServerOptions& options,
                                                            ControlHandler& handler) {
  if (options.listen.empty()) return Status(Errc::kConfig, "a node needs an address to listen on");
  auto server = std::make_unique<GrpcControlServer>(handler, options);
  keep_grpc();
  GENIE_TRY(server->start());
  return std::unique_ptr<ControlServer>(std::move(server));
}

}  // namespace genie::control
