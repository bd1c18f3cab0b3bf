#include "src/node/server.h"

#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/base/tcp_address.h"
#include "src/control/host_id.h"

namespace genie::node {
namespace {

constexpr uint64_t kSignsPerTimeout = 4;  // signs of life within a client's patience
constexpr uint64_t kMinSignMs = 20;

Result<std::string> random_bytes(size_t count) {
  std::string bytes(count, '\0');
  size_t done = 0;
  while (done < count) {
    const ssize_t got = ::getrandom(bytes.data() + done, count - done, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return Status(Errc::kIo, "the system gives no random bytes");
    done += static_cast<size_t>(got);
  }
  return bytes;
}

Result<std::string> random_hex(size_t bytes) {
  const Result<std::string> raw = random_bytes(bytes);
  GENIE_TRY(raw.status());
  std::string hex;
  for (const char byte : *raw) hex += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return hex;
}

// A folder that only this user may enter, for a data socket that has no control socket to lie beside.
Result<std::string> make_private_folder() {
  const char* base = std::getenv("RUNTIME_DIRECTORY");
  if (base == nullptr) base = std::getenv("XDG_RUNTIME_DIR");
  std::string pattern = std::string(base != nullptr ? base : "/tmp") + "/genie-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) {
    return Status(Errc::kIo, "cannot make a folder like " + pattern + ": " + std::strerror(errno));
  }
  return pattern;
}

// The folder of a socket is made where only itself is missing. Others may enter it: the socket's own rights keep them out.
Status make_socket_folder(const std::string& uri) {
  constexpr mode_t kMode = 0755;
  const std::string folder = std::filesystem::path(uri.substr(uri.find(':') + 1)).parent_path();
  if (folder.empty() || ::mkdir(folder.c_str(), kMode) == 0 || errno == EEXIST) return {};
  const std::string why = std::strerror(errno);
  struct stat info {};
  if (::stat(folder.c_str(), &info) == 0) return {};  // a file system that may not be written, say
  return {Errc::kIo, "cannot listen on " + uri + ": its folder is not there and cannot be made (" + why +
                         "): make it with \"mkdir -p " + folder + "\" as a user who may, or choose another path"};
}

// tcp://host:7000 and 2: tcp://host:7002. Any free port stays that.
Result<std::string> nth_port(const std::string& uri, size_t nth) {
  Result<datapath::TcpAddress> address = datapath::parse_tcp_address(uri);
  GENIE_TRY(address.status());
  const size_t port = address->port_number().value_or(0);
  if (port == 0) return uri;
  if (port + nth > UINT16_MAX) {
    return Status(Errc::kConfig, "data_listen: " + uri + " leaves no port for a further transport: choose a lower one");
  }
  address->port = std::to_string(port + nth);
  return address->to_string();
}

}  // namespace

Result<std::unique_ptr<NodeServer>> NodeServer::start(ServerOptions options) {
  std::unique_ptr<NodeServer> server(new NodeServer(std::move(options)));
  Result<std::unique_ptr<Node>> node = Node::make(server->options_.node);
  GENIE_TRY(node.status());
  server->node_ = std::move(*node);
  server->operators_ = executor::operator_set();
  for (const std::string& uri : server->options_.listen) {
    if (uri.starts_with("unix:")) GENIE_TRY(make_socket_folder(uri));
  }
  GENIE_TRY(server->start_planes());
  Result<std::unique_ptr<control::ControlServer>> control =
      control::ControlServer::start({.listen = server->options_.listen, .token = server->options_.token}, *server);
  GENIE_TRY(control.status());
  server->control_ = std::move(*control);
  return server;
}

NodeServer::~NodeServer() { stop(); }

// A node that chooses by itself offers networks only where its control plane can be reached over one, and goes without those
// that do not work here.
Status NodeServer::start_planes() {
  const Result<std::vector<std::string>> names = datapath::parse_backends(options_.transport);
  GENIE_TRY(names.status());
  const bool chooses = options_.transport == "auto";
  const bool reachable = !options_.data_listen.empty() || !listened_on("tcp://").empty();
  size_t networks = 0;  // that are named, whichever of them work here: firewalls know the ports
  for (const std::string& name : *names) {
    if (chooses && name != "shm" && !reachable) continue;
    const Result<std::string> where = name == "shm" ? shm_place() : network_place(networks++);
    const Status started = where ? start_plane(name, *where, chooses) : where.status();
    if (started.ok()) continue;
    if (!chooses || planes_.empty()) return started;
    if (started.code() == Errc::kUnsupported) {
      GENIE_LOG_INFO("node '{}' does not offer {}: {}", options_.node.name, name, started.text());
    } else {
      GENIE_LOG_WARN("node '{}' cannot offer {}, which should work here: {}", options_.node.name, name, started.text());
    }
  }
  return {};
}

Status NodeServer::start_plane(const std::string& name, const std::string& where, bool by_itself) {
  Result<std::unique_ptr<DataPlane>> plane = DataPlane::start(
      {.transport = name, .listen = where, .backend = options_.backend, .busy_polling = options_.busy_polling}, *node_,
      table_);
  if (plane) {
    const Result<datapath::TcpAddress> address = datapath::parse_tcp_address((*plane)->address());
    if (by_itself && name == "ucx" && !(address && address->is_loopback())) {
      GENIE_LOG_WARN(
          "node '{}' offers UCX at {}: whoever can reach that address must be trusted, as over TCP UCX itself asks for "
          "no token; --transport shm leaves it out, --data-listen puts it on a network of your own",
          options_.node.name, (*plane)->address());
    }
    planes_.push_back(std::move(*plane));
    return {};
  }
  // What the transport itself lacks has nothing to do with where it would listen.
  if (plane.code() == Errc::kUnsupported || plane.code() == Errc::kConfig || plane.code() == Errc::kUnreachable) {
    return plane.status();
  }
  // The address that the user gave.
  const bool beside = where.ends_with(".data") && data_folder_.empty();
  const std::string given = where.substr(0, where.size() - (beside ? 5 : 0));
  return {plane.code(), given + ": its data socket: " + std::string(plane.status().text())};
}

std::string NodeServer::listened_on(std::string_view scheme) const {
  const auto found =
      std::ranges::find_if(options_.listen, [&](const std::string& uri) { return uri.starts_with(scheme); });
  return found == options_.listen.end() ? std::string() : *found;
}

// Data endpoints are beside the control plane, where nothing else is said.
Result<std::string> NodeServer::network_place(size_t nth) const {
  if (!options_.data_listen.empty()) return nth_port(options_.data_listen, nth);
  const std::string control = listened_on("tcp://");
  return control.empty() ? std::string("tcp://127.0.0.1:0") : control.substr(0, control.rfind(':')) + ":0";
}

Result<std::string> NodeServer::shm_place() {
  if (const std::string control = listened_on("unix:"); !control.empty()) return control + ".data";
  Result<std::string> folder = make_private_folder();
  GENIE_TRY(folder.status());
  data_folder_ = *folder;
  return "unix:" + data_folder_ + "/data.sock";
}

std::string NodeServer::transport_names() const {
  std::string names;
  for (const auto& plane : planes_) names += (names.empty() ? "" : ",") + plane->transport_name();
  return names;
}

std::string NodeServer::data_addresses() const {
  std::string addresses;
  for (const auto& plane : planes_) addresses += (addresses.empty() ? "" : ",") + plane->address();
  return addresses;
}

void NodeServer::stop() {
  const std::lock_guard lock(stop_mutex_);
  draining_.store(true, std::memory_order_release);
  if (node_ != nullptr) node_->start_draining();
  constexpr uint64_t kGraceMs = 500;
  if (control_ != nullptr) control_->stop(Deadline::after_ms(kGraceMs));
  for (const auto& plane : planes_) plane->stop_polling();
  // Answers to what is still queued go to sinks whose poller has ended: they are dropped with the inbox.
  if (node_ != nullptr) node_->stop();
  for (const auto& plane : planes_) plane->end_sessions();
  table_.clear();
  if (!data_folder_.empty()) ::rmdir(data_folder_.c_str());
  data_folder_.clear();
}

bool NodeServer::drain(Deadline deadline) {
  node_->start_draining();
  control_->set_serving(false);
  draining_.store(true, std::memory_order_release);
  for (const auto& plane : planes_) plane->start_draining();
  constexpr useconds_t kLookUs = 2'000;
  while (!deadline.expired()) {
    if (node_->status().sessions == 0) return true;
    ::usleep(kLookUs);
  }
  return node_->status().sessions == 0;
}

Status NodeServer::check_versions(const control::OpenOrder& order) const {
  const std::string& name = options_.node.name;
  if (order.protocol_version != wire::kProtocolVersion) {
    return {Errc::kVersionMismatch, "node '" + name + "' speaks version " + std::to_string(wire::kProtocolVersion) +
                                        " of the protocol (Genie " + kGenieVersion + "), this program version " +
                                        std::to_string(order.protocol_version) + " (Genie " + order.genie_version +
                                        "): install the same Genie on both sides"};
  }
  if (order.torch_version != operators_.torch_version) {
    return {Errc::kVersionMismatch, "node '" + name + "' runs libtorch " + operators_.torch_version +
                                        ", this program " + order.torch_version +
                                        ": install the same libtorch on both sides"};
  }
  if (order.schema_hash != operators_.schema_hash) {
    return {Errc::kVersionMismatch,
            "node '" + name + "' and this program have different sets of operators (" +
                std::to_string(operators_.count) + " and " + std::to_string(order.operator_count) +
                "): build both against the same libtorch, and load the same operator libraries on the node"};
  }
  return {};
}

Result<control::OpenAnswer> NodeServer::open(const control::OpenOrder& order, std::string_view identity) {
  GENIE_TRY(check_versions(order));
  if (order.transport != "auto" &&
      std::ranges::none_of(planes_, [&](const auto& plane) { return plane->transport_name() == order.transport; })) {
    return Status(Errc::kUnsupported, "node '" + options_.node.name + "' offers the transport " + transport_names() +
                                          ", not '" + order.transport + "': name one of these, or auto");
  }
  const Result<std::string> id = random_hex(16);
  GENIE_TRY(id.status());
  const Result<std::string> token = random_bytes(32);
  GENIE_TRY(token.status());
  Result<std::shared_ptr<SessionState>> state = node_->open_session(identity);
  GENIE_TRY(state.status());

  RemoteSessionOptions options;
  options.id = *id;
  options.token = *token;
  options.progress_interval_ms = std::max(kMinSignMs, order.progress_timeout_ms / kSignsPerTimeout);
  options.attach_deadline_ns = Deadline::after_ms(options_.attach_timeout_ms).when_ns();
  auto session = std::make_shared<RemoteSession>(std::move(options), *state, node_->device(), shared_);
  table_.add(std::move(session));
  GENIE_LOG_INFO("session {} opened by {}", (*state)->number(), order.client_name);

  control::OpenAnswer answer;
  const control::NodeReport self = report();
  answer.session_id = *id;
  answer.node_name = self.node_name;
  answer.genie_version = self.genie_version;
  answer.torch_version = self.torch_version;
  answer.devices = self.devices;
  for (const auto& plane : planes_) answer.data.push_back({plane->transport_name(), plane->address()});
  answer.host_id = control::host_id();
  answer.data_token = *token;
  answer.in_flight_max = options_.node.session_limits.in_flight;
  answer.templates_max = options_.node.session_limits.templates;
  answer.template_bytes_max = options_.node.session_limits.template_bytes;
  for (executor::LibraryOperator& op : executor::library_operators()) {
    answer.operators.push_back({std::move(op.name), std::move(op.overload), op.schema_hash});
  }
  return answer;
}

void NodeServer::close(std::string_view session_id) {
  if (const auto session = table_.take_unclaimed(session_id)) return node_->close_session(session->state());
  if (auto [session, plane] = table_.find(session_id); plane != nullptr) plane->close_session(std::move(session));
}

Result<uint64_t> NodeServer::register_template(std::string_view session_id, std::span<const std::byte> serialized,
                                               std::span<const uint64_t> forget) {
  const std::shared_ptr<RemoteSession> session = table_.find(session_id).session;
  if (session == nullptr) {
    return Status(Errc::kNotFound, "node '" + options_.node.name + "' has no such session (any more): connect again");
  }
  return session->state()->add_template(serialized, forget);
}

control::NodeReport NodeServer::report() {
  const session::NodeInfo info = node_->info();
  const NodeStatus status = node_->status();
  control::NodeReport report;
  report.node_name = info.name;
  report.genie_version = info.version;
  report.torch_version = info.torch_version;
  for (const session::DeviceInfo& device : info.devices) {
    report.devices.push_back(
        {.kind = device.kind, .threads = static_cast<uint32_t>(device.threads), .memory_bytes = device.memory_bytes});
  }
  report.transport = transport_names();
  report.draining = draining_.load(std::memory_order_acquire);
  report.sessions = status.sessions;
  report.sessions_opened = status.sessions_opened;
  report.storages = status.storages;
  report.storage_bytes = status.storage_bytes;
  report.templates = status.templates;
  report.in_flight = status.in_flight;
  report.regions = shared_.regions.load(std::memory_order_relaxed);
  report.region_bytes = shared_.bytes.load(std::memory_order_relaxed);
  report.records_executed = status.records_executed;
  report.blobs = status.content.blobs;
  report.blob_bytes = status.content.bytes;
  report.blob_known_bytes = status.content.known_bytes;
  return report;
}

}  // namespace genie::node
