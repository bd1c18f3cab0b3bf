#include "src/node/node.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "datapath/base/log.h"

namespace genie::node {

uint64_t physical_memory_bytes() {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long page_bytes = ::sysconf(_SC_PAGE_SIZE);
  return pages > 0 && page_bytes > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page_bytes) : 0;
}

Result<std::unique_ptr<Node>> Node::make(NodeOptions options) {
  if (options.devices.empty()) return Status(Errc::kConfig, "a node needs at least one device");
  std::unique_ptr<Node> node(new Node(std::move(options)));
  for (const DeviceOptions& wanted : node->options_.devices) {
    Result<std::unique_ptr<Device>> device = Device::make(wanted, node->options_.name);
    GENIE_TRY(device.status());
    node->devices_.push_back(std::move(*device));
  }
  return node;
}

Node::~Node() { stop(); }

session::NodeInfo Node::info() const {
  session::NodeInfo info;
  info.name = options_.name;
  info.version = kGenieVersion;
  info.torch_version = executor::operator_set().torch_version;
  info.templates_max = options_.session_limits.templates;
  info.template_bytes_max = options_.session_limits.template_bytes;
  info.shares_process = options_.session_limits.trust == executor::Trust::kProcess;
  for (const auto& device : devices_) {
    info.devices.push_back({.kind = device->options().kind,
                            .threads = device->options().threads,
                            .memory_bytes = std::min(options_.session_limits.memory_bytes, physical_memory_bytes())});
  }
  return info;
}

Result<std::shared_ptr<SessionState>> Node::open_session(std::optional<std::string_view> identity) {
  if (draining_.load(std::memory_order_acquire)) {
    return Status(Errc::kBusy,
                  "node '" + options_.name + "' is draining and takes no new sessions: connect to another node");
  }
  Device& first = device(0);
  const std::lock_guard lock(mutex_);
  std::erase_if(sessions_, [](const auto& entry) { return entry.second->ended(); });
  if (sessions_.size() >= options_.sessions_max) {
    return Status(Errc::kQuotaExceeded, "node '" + options_.name + "' serves its limit of " +
                                            std::to_string(options_.sessions_max) +
                                            " sessions: close one, or raise the node's limit");
  }
  ContentAccess content;
  if (identity) {
    const auto known = identities_.try_emplace(std::string(*identity), identities_.size()).first;
    content = {.store = content_, .identity = known->second};
  }
  auto state = std::make_shared<SessionState>(next_session_++, first.place(), first.options().threads,
                                              options_.session_limits, &first.progress(), std::move(content));
  sessions_.emplace(state->number(), state);
  return state;
}

void Node::close_session(const std::shared_ptr<SessionState>& session) {
  session->close();
  // Without a worker, this thread is the only one left that can reach the store.
  if (!device(0).post_end(session).ok()) session->end_st();
}

bool Node::idle() const noexcept {
  for (const auto& device : devices_) {
    if (device->pending() != 0) return false;
  }
  return true;
}

NodeStatus Node::status() const {
  NodeStatus status;
  for (const auto& device : devices_) status.records_executed += device->progress().load(std::memory_order_relaxed);
  status.content = content_->counters();
  const std::lock_guard lock(mutex_);
  status.sessions_opened = next_session_ - 1;
  for (const auto& [number, session] : sessions_) {
    if (session->ended()) continue;
    ++status.sessions;
    status.storages += session->storage_count();
    status.storage_bytes += session->bytes_in_use();
    status.templates += session->template_count();
    status.in_flight += session->in_flight();
  }
  return status;
}

void Node::stop() {
  content_->stop();
  for (const auto& device : devices_) device->stop();
  const std::lock_guard lock(mutex_);
  // No worker is left, so the stores may go here; nobody can reach them any more.
  for (const auto& [number, session] : sessions_) {
    session->close();
    session->end_st();
  }
  sessions_.clear();
}

}  // namespace genie::node
