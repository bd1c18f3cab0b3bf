#include "src/session/remote_link.h"

#include <unistd.h>

#include <utility>

#include "src/control/control.h"
#include "src/control/token.h"
#include "src/node/node.h"
#include "src/session/data_connection.h"
#include "src/session/remote_core.h"

namespace genie::session {
namespace {

constexpr uint64_t kCloseMs = 1'000;

class RemoteLink final : public Link {
 public:
  RemoteLink(std::string uri, const LinkOptions& options, std::unique_ptr<control::ControlClient> control,
             std::string session_id, NodeInfo info, std::shared_ptr<RemoteCore> core)
      : uri_(std::move(uri)),
        options_(options),
        control_(std::move(control)),
        session_id_(std::move(session_id)),
        info_(std::move(info)),
        core_(std::move(core)) {}
  ~RemoteLink() override { close(); }

  const NodeInfo& node() const override { return info_; }

  Result<uint64_t> register_template(std::span<const std::byte> serialized, std::span<const uint64_t> forget) override {
    if (Status failure = core_->failure(); !failure.ok()) return failure;
    Result<uint64_t> id =
        control_->register_template(session_id_, serialized, forget, Deadline::after_ms(options_.progress_timeout_ms));
    if (id) {
      core_->count_template();
      return id;
    }
    if (id.code() != Errc::kUnreachable) return id;
    core_->poll();
    return Status(Errc::kDisconnected, "node '" + info_.name + "' has gone: " + std::string(id.status().text()));
  }

  Result<std::unique_ptr<Upload>> begin_upload(size_t size) override { return core_->begin_upload(size); }
  Result<std::unique_ptr<Upload>> snapshot(std::span<const std::byte> source, const SnapshotWriter& write) override {
    return core_->snapshot(source, write);
  }
  std::unique_ptr<Upload> lend_upload(std::span<std::byte>, std::shared_ptr<void>) override { return nullptr; }
  Result<std::shared_ptr<Ticket>> submit(Submission submission) override {
    return core_->submit(std::move(submission));
  }
  Status wait(Ticket& ticket) override {
    const auto* const remote = dynamic_cast<const RemoteTicket*>(&ticket);
    if (remote == nullptr) return {Errc::kInvalidArgument, "the ticket was not made by this link"};
    return core_->wait(*remote);
  }
  void poll() override { core_->poll(); }
  Status check() override { return core_->check(); }
  LinkCounters counters() const override { return core_->counters(); }

  void close() override {
    const Status before = core_->failure();
    core_->end(Status(Errc::kCancelled,
                      "the session with node '" + info_.name + "' at " + uri_ + " is closed: connect again"));
    // The hang-up ends the session already; this lets the node's log say why.
    if (before.ok()) (void)control_->close(session_id_, Deadline::after_ms(kCloseMs));
  }

 private:
  const std::string uri_;
  const LinkOptions options_;
  const std::unique_ptr<control::ControlClient> control_;
  const std::string session_id_;
  const NodeInfo info_;
  const std::shared_ptr<RemoteCore> core_;
};

NodeInfo info_of(const DataConnection& connection) {
  const control::OpenAnswer& answer = connection.answer;
  NodeInfo info;
  info.name = answer.node_name;
  info.version = answer.genie_version;
  info.torch_version = answer.torch_version;
  info.transport = connection.name;
  info.transport_why = connection.why;
  info.templates_max = answer.templates_max;
  info.template_bytes_max = answer.template_bytes_max;
  for (const control::OperatorEntry& op : answer.operators) {
    info.operators.emplace(op.overload.empty() ? op.name : op.name + "." + op.overload, op.schema_hash);
  }
  for (const control::DeviceEntry& device : answer.devices) {
    info.devices.push_back(
        {.kind = device.kind, .threads = static_cast<int>(device.threads), .memory_bytes = device.memory_bytes});
  }
  return info;
}

}  // namespace

Result<std::unique_ptr<Link>> open_remote(std::string_view uri, const LinkOptions& options) {
  const Deadline deadline = Deadline::after_ms(options.connect_timeout_ms);
  const Result<std::vector<std::string>> known = datapath::parse_backends(options.transport);
  GENIE_TRY(known.status());
  if (options.transport != "auto" && known->size() != 1) {
    return Status(Errc::kInvalidArgument, "transport '" + options.transport + "': a program names one, or says auto");
  }
  Result<std::string> token = control::token_or_environment(options.token);
  GENIE_TRY(token.status());
  Result<std::unique_ptr<control::ControlClient>> control = control::ControlClient::make(uri, std::move(*token));
  GENIE_TRY(control.status());

  const executor::OperatorSet operators = executor::operator_set();
  control::OpenOrder order;
  order.protocol_version = wire::kProtocolVersion;
  order.genie_version = node::kGenieVersion;
  order.torch_version = operators.torch_version;
  order.schema_hash = operators.schema_hash;
  order.operator_count = operators.count;
  order.transport = options.transport;
  order.client_name = "process " + std::to_string(::getpid());
  order.progress_timeout_ms = options.progress_timeout_ms;
  Result<DataConnection> connection = connect_data(**control, order, uri, options, deadline);
  GENIE_TRY(connection.status());

  const control::OpenAnswer& answer = connection->answer;
  RemoteCore::Setup setup;
  setup.node_name = answer.node_name;
  setup.uri = uri;
  setup.options = options;
  setup.in_flight_max = answer.in_flight_max;
  if (!answer.devices.empty()) setup.memory_bytes = answer.devices.front().memory_bytes;
  setup.transport = std::move(connection->transport);
  setup.endpoint = connection->endpoint;
  auto core = std::make_shared<RemoteCore>(std::move(setup));
  return std::unique_ptr<Link>(std::make_unique<RemoteLink>(std::string(uri), options, std::move(*control),
                                                            answer.session_id, info_of(*connection), std::move(core)));
}

}  // namespace genie::session
