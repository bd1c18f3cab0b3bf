#include "src/node/server.h"

#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "datapath/base/log.h"
#include "datapath/base/pause.h"

namespace genie::node {
namespace {

constexpr uint64_t kSpinNs = 50'000;      // how long an idle poller spins before it sleeps
constexpr uint64_t kTendNs = 20'000'000;  // how often it looks after deadlines and signs of life
constexpr uint64_t kIdleSleepNs = 500'000'000;
constexpr uint64_t kBusySleepNs = 2'000'000;  // while something waits for room or for a worker to let go of memory
constexpr uint64_t kSignsPerTimeout = 4;      // signs of life within a client's patience
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

uint64_t key_of(datapath::EndpointId endpoint) noexcept {
  return (static_cast<uint64_t>(endpoint.generation) << 32) | endpoint.index;
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

}  // namespace

// Brings a worker's response to the poller.
class NodeServer::Sink final : public ResponseSink {
 public:
  Sink(NodeServer& server, std::weak_ptr<RemoteSession> session) : server_(server), session_(std::move(session)) {}
  void deliver(Response response) noexcept override {
    if (auto session = session_.lock()) {
      server_.post({.session = std::move(session), .response = std::make_unique<Response>(std::move(response))});
    }
  }

 private:
  NodeServer& server_;
  const std::weak_ptr<RemoteSession> session_;
};

Result<std::unique_ptr<NodeServer>> NodeServer::start(ServerOptions options) {
  std::unique_ptr<NodeServer> server(new NodeServer(std::move(options)));
  Result<std::unique_ptr<Node>> node = Node::make(server->options_.node);
  GENIE_TRY(node.status());
  server->node_ = std::move(*node);
  server->operators_ = executor::operator_set();
  for (const std::string& uri : server->options_.listen) {
    if (uri.starts_with("unix:")) GENIE_TRY(make_socket_folder(uri));
  }
  GENIE_TRY(server->start_transport());
  server->poller_ = std::thread([raw = server.get()] { raw->run(); });
  Result<std::unique_ptr<control::ControlServer>> control =
      control::ControlServer::start({.listen = server->options_.listen, .token = server->options_.token}, *server);
  GENIE_TRY(control.status());
  server->control_ = std::move(*control);
  return server;
}

NodeServer::~NodeServer() { stop(); }

Status NodeServer::start_transport() {
  Result<std::string> chosen = datapath::choose_backend(options_.transport);
  GENIE_TRY(chosen.status());
  transport_name_ = *chosen;
  Result<std::unique_ptr<datapath::Transport>> transport = datapath::make_backend(transport_name_, {});
  GENIE_TRY(transport.status());
  transport_ = std::move(*transport);
  const Result<std::string> where = data_place();
  GENIE_TRY(where.status());
  if (const Status status = transport_->listen(*where); !status.ok()) {
    if (!data_folder_.empty()) return status;
    // The address that the user gave.
    const std::string given = where->substr(0, where->size() - (where->ends_with(".data") ? 5 : 0));
    return {status.code(), given + ": its data socket: " + std::string(status.text())};
  }
  data_address_ = transport_->address();
  return {};
}

// Where clients find the data endpoint: beside the control plane.
Result<std::string> NodeServer::data_place() {
  const auto beside = [&](std::string_view scheme) {
    const auto found =
        std::ranges::find_if(options_.listen, [&](const std::string& uri) { return uri.starts_with(scheme); });
    return found == options_.listen.end() ? std::string() : *found;
  };
  if (transport_name_ != "shm") {
    if (!options_.data_listen.empty()) return options_.data_listen;
    const std::string control = beside("tcp://");
    return control.empty() ? std::string("tcp://127.0.0.1:0") : control.substr(0, control.rfind(':')) + ":0";
  }
  if (const std::string control = beside("unix:"); !control.empty()) return control + ".data";
  Result<std::string> folder = make_private_folder();
  GENIE_TRY(folder.status());
  data_folder_ = *folder;
  return "unix:" + data_folder_ + "/data.sock";
}

void NodeServer::stop() {
  const std::lock_guard lock(stop_mutex_);
  draining_.store(true, std::memory_order_release);
  if (node_ != nullptr) node_->start_draining();
  constexpr uint64_t kGraceMs = 500;
  if (control_ != nullptr) control_->stop(Deadline::after_ms(kGraceMs));
  stopping_.store(true, std::memory_order_release);
  if (transport_ != nullptr) transport_->wake();
  if (poller_.joinable()) poller_.join();
  // Answers to what is still queued go to sinks whose poller has ended: they are dropped with the inbox.
  if (node_ != nullptr) node_->stop();
  if (transport_ != nullptr) {
    for (const auto& [key, session] : by_endpoint_) (void)transport_->close(session->endpoint());
    by_endpoint_.clear();
    for (const auto& session : live_) {
      session->begin_end();
      (void)session->pump(*transport_);
    }
  }
  live_.clear();
  sinks_.clear();
  inbox_.clear();
  transport_.reset();
  if (!data_folder_.empty()) ::rmdir(data_folder_.c_str());
  data_folder_.clear();
}

bool NodeServer::drain(Deadline deadline) {
  node_->start_draining();
  control_->set_serving(false);
  draining_.store(true, std::memory_order_release);
  transport_->wake();
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

Result<control::OpenAnswer> NodeServer::open(const control::OpenOrder& order) {
  GENIE_TRY(check_versions(order));
  if (order.transport != "auto" && order.transport != transport_name_) {
    return Status(Errc::kUnsupported, "node '" + options_.node.name + "' offers the transport " + transport_name_ +
                                          ", not '" + order.transport + "': use " + transport_name_ + " or auto");
  }
  const Result<std::string> id = random_hex(16);
  GENIE_TRY(id.status());
  const Result<std::string> token = random_bytes(32);
  GENIE_TRY(token.status());
  Result<std::shared_ptr<SessionState>> state = node_->open_session();
  GENIE_TRY(state.status());

  RemoteSessionOptions options;
  options.id = *id;
  options.token = *token;
  options.progress_interval_ms = std::max(kMinSignMs, order.progress_timeout_ms / kSignsPerTimeout);
  options.attach_deadline_ns = Deadline::after_ms(options_.attach_timeout_ms).when_ns();
  auto session = std::make_shared<RemoteSession>(std::move(options), *state, node_->device(), shared_);
  {
    const std::lock_guard lock(table_mutex_);
    sessions_.emplace(*id, session);
  }
  GENIE_LOG_INFO("session {} opened by {}", (*state)->number(), order.client_name);

  control::OpenAnswer answer;
  const control::NodeReport self = report();
  answer.session_id = *id;
  answer.node_name = self.node_name;
  answer.genie_version = self.genie_version;
  answer.torch_version = self.torch_version;
  answer.devices = self.devices;
  answer.transport = transport_name_;
  answer.data_address = data_address_;
  answer.data_token = *token;
  answer.in_flight_max = options_.node.session_limits.in_flight;
  answer.templates_max = options_.node.session_limits.templates;
  answer.template_bytes_max = options_.node.session_limits.template_bytes;
  for (executor::LibraryOperator& op : executor::library_operators()) {
    answer.operators.push_back({std::move(op.name), std::move(op.overload), op.schema_hash});
  }
  return answer;
}

std::shared_ptr<RemoteSession> NodeServer::find(std::string_view session_id) {
  const std::lock_guard lock(table_mutex_);
  const auto found = sessions_.find(std::string(session_id));
  return found == sessions_.end() ? nullptr : found->second;
}

void NodeServer::close(std::string_view session_id) {
  if (auto session = find(session_id)) post({.session = std::move(session), .response = nullptr});
}

Result<uint64_t> NodeServer::register_template(std::string_view session_id, std::span<const std::byte> serialized,
                                               std::span<const uint64_t> forget) {
  const std::shared_ptr<RemoteSession> session = find(session_id);
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
  report.transport = transport_name_;
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
  return report;
}

void NodeServer::post(Event event) {
  {
    const std::lock_guard lock(inbox_mutex_);
    inbox_.push_back(std::move(event));
    inbox_count_.store(inbox_.size(), std::memory_order_release);
  }
  // The poller counts itself as sleeping, then looks at the inbox; we fill the inbox, then look whether it sleeps.
  if (sleeping_.fetch_add(0, std::memory_order_acq_rel) != 0) transport_->wake();
}

// -- The poller ----------------------------------------------------------------------------------------------------------

void NodeServer::run() {
  std::array<datapath::Completion, 64> completions;
  uint64_t idle_since = now_ns();
  while (!stopping_.load(std::memory_order_acquire)) {
    const size_t count = transport_->poll(completions);
    for (size_t i = 0; i < count; ++i) {
      on_completion(completions[i]);
      completions[i] = {};
    }
    const size_t events = take_inbox();
    const bool moved = pump_sessions();
    const uint64_t now = now_ns();
    if (now >= next_tend_ns_) {
      tend_sessions();
      next_tend_ns_ = now + kTendNs;
    }
    if (count != 0 || events != 0 || moved) {
      idle_since = now;
    } else if (options_.busy_polling) {
      cpu_pause();
    } else if (now - idle_since < kSpinNs) {
      spin_step(now - idle_since);
    } else {
      sleep();
    }
  }
}

void NodeServer::sleep() {
  uint64_t timeout_ns = kIdleSleepNs;
  for (const auto& session : live_) {
    if (session->state()->in_flight() != 0 || session->ending()) timeout_ns = std::min(timeout_ns, kTendNs);
    if (session->wants_pump()) timeout_ns = std::min(timeout_ns, kBusySleepNs);
  }
  sleeping_.fetch_add(1, std::memory_order_acq_rel);
  if (inbox_count_.load(std::memory_order_acquire) == 0 && !stopping_.load(std::memory_order_acquire)) {
    transport_->wait(timeout_ns);
  }
  sleeping_.fetch_sub(1, std::memory_order_relaxed);
}

void NodeServer::on_completion(datapath::Completion& completion) {
  switch (completion.opcode) {
    case datapath::Opcode::kConnected: return on_connected(completion.endpoint);
    case datapath::Opcode::kReceive: return on_message(completion);
    case datapath::Opcode::kDisconnected:
      if (auto session = session_of(completion.endpoint)) {
        by_endpoint_.erase(key_of(completion.endpoint));
        session->detach();
        end_session(session, Status(Errc::kDisconnected, "the client has gone"), false);
      }
      return;
    default: return;  // our own sends: dropping the completion frees the piece
  }
}

void NodeServer::on_connected(datapath::EndpointId endpoint) {
  const std::span<const std::byte> token = transport_->endpoint_token(endpoint);
  const std::string_view given(reinterpret_cast<const char*>(token.data()), token.size());
  std::shared_ptr<RemoteSession> match;
  {
    const std::lock_guard lock(table_mutex_);
    for (const auto& [id, session] : sessions_) {
      // 32 random bytes, good for one connection: a timing that tells of a prefix is of no use.
      if (!session->endpoint().valid() && !session->ending() && session->options().token == given) match = session;
    }
  }
  if (match == nullptr) {
    GENIE_LOG_WARN("node '{}': refused a data connection without a session", options_.node.name);
    (void)transport_->close(endpoint);
    return;
  }
  match->attach(endpoint);
  by_endpoint_.emplace(key_of(endpoint), match);
  if (std::ranges::find(live_, match) == live_.end()) live_.push_back(match);
  sinks_.emplace(match->state()->number(), std::make_shared<Sink>(*this, match));
}

void NodeServer::on_message(datapath::Completion& completion) {
  const std::shared_ptr<RemoteSession> session = session_of(completion.endpoint);
  if (session == nullptr || session->ending()) return;
  const Status handled = session->handle(*transport_, completion.immediate, completion.buffer.bytes(),
                                         sinks_.at(session->state()->number()));
  if (handled.ok()) return;
  GENIE_LOG_WARN("node '{}': session {} broke the protocol and is ended: {}", options_.node.name,
                 session->state()->number(), handled.to_string());
  end_session(
      session,
      Status(Errc::kProtocol, "node '" + options_.node.name + "' ended the session: " + std::string(handled.text())),
      true);
}

std::shared_ptr<RemoteSession> NodeServer::session_of(datapath::EndpointId endpoint) {
  const auto found = by_endpoint_.find(key_of(endpoint));
  return found == by_endpoint_.end() ? nullptr : found->second;
}

size_t NodeServer::take_inbox() {
  if (inbox_count_.load(std::memory_order_acquire) == 0) return 0;
  {
    const std::lock_guard lock(inbox_mutex_);
    taken_.swap(inbox_);
    inbox_count_.store(0, std::memory_order_release);
  }
  for (Event& event : taken_) {
    if (event.response != nullptr) {
      event.session->respond(*transport_, std::move(*event.response));
    } else {
      end_session(event.session, Status(Errc::kCancelled, "closed by the client"), false);
    }
  }
  const size_t count = taken_.size();
  taken_.clear();
  return count;
}

bool NodeServer::pump_sessions() {
  bool moved = false;
  for (const auto& session : live_) {
    if (session->wants_pump()) moved |= session->pump(*transport_);
  }
  return moved;
}

// Deadlines, signs of life, draining, and the end of what has ended.
void NodeServer::tend_sessions() {
  {
    const std::lock_guard lock(table_mutex_);
    if (sessions_.size() != live_.size()) {
      live_.clear();
      for (const auto& [id, session] : sessions_) live_.push_back(session);
    }
  }
  const uint64_t now = now_ns();
  const bool draining = draining_.load(std::memory_order_acquire);
  const std::vector<std::shared_ptr<RemoteSession>> sessions = live_;
  for (const auto& session : sessions) {
    session->tick(now);
    session->drop_idle_results(now);
    if (session->ending()) {
      if (!session->gone()) continue;
      sinks_.erase(session->state()->number());
      std::erase(live_, session);
      const std::lock_guard lock(table_mutex_);
      sessions_.erase(session->options().id);
    } else if (!session->endpoint().valid() && now >= session->options().attach_deadline_ns) {
      end_session(session, Status(Errc::kTimedOut, "its client did not connect to the data endpoint"), false);
    } else if (draining && session->flushed()) {
      end_session(session,
                  Status(Errc::kDisconnected,
                         "node '" + options_.node.name + "' is shutting down: connect to another node, or later"),
                  true);
    }
  }
}

void NodeServer::end_session(const std::shared_ptr<RemoteSession>& session, const Status& why, bool tell) {
  if (session->ending()) return;
  GENIE_LOG_INFO("session {} ends: {}", session->state()->number(), why.to_string());
  if (tell) {
    session->say_farewell(why);
    (void)session->pump(*transport_);
  }
  session->begin_end();
  node_->close_session(session->state());
  if (session->endpoint().valid()) {
    by_endpoint_.erase(key_of(session->endpoint()));
    (void)transport_->close(session->endpoint());
    session->detach();
  }
  next_tend_ns_ = 0;
}

}  // namespace genie::node
