// Node: the devices of one process, offered to sessions.
//
// Purpose: what `genie-node` and `embedded:` have in common: device workers, the table of sessions, limits, counters.
// Thread-safety: all functions may be called from any thread.
// Ownership: the node owns its devices; a session's state is shared by the table and the work in flight.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "genie/status.h"
#include "src/node/content_store.h"
#include "src/node/device.h"
#include "src/node/session_state.h"
#include "src/session/link.h"

namespace genie::node {

inline constexpr const char* kGenieVersion = "0.1.0";

// Of this machine.
uint64_t physical_memory_bytes();

struct NodeOptions {
  std::string name = "node";
  std::vector<DeviceOptions> devices = {DeviceOptions{}};
  SessionLimits session_limits;
  size_t sessions_max = 4096;
};

struct NodeStatus {
  uint64_t sessions = 0;
  uint64_t sessions_opened = 0;
  uint64_t storages = 0;
  uint64_t storage_bytes = 0;
  uint64_t templates = 0;
  uint64_t in_flight = 0;
  uint64_t records_executed = 0;  // progress of all devices
  ContentStore::Counters content;
};

class Node {
 public:
  static Result<std::unique_ptr<Node>> make(NodeOptions options);
  ~Node();

  const NodeOptions& options() const noexcept { return options_; }
  // Everything but the transport's name.
  session::NodeInfo info() const;
  Device& device(size_t index = 0) noexcept { return *devices_[index]; }

  // kQuotaExceeded when there are too many, kBusy while draining. Sessions of one identity share what they upload by its
  // content; without one a session shares nothing.
  Result<std::shared_ptr<SessionState>> open_session(std::optional<std::string_view> identity = std::nullopt);
  // Work that is queued is answered with kCancelled, then the session's memory goes. Returns at once; ended() says when.
  void close_session(const std::shared_ptr<SessionState>& session);

  // Refuses new sessions from now on.
  void start_draining() noexcept { draining_.store(true, std::memory_order_release); }
  // True once no device has work left.
  bool idle() const noexcept;
  NodeStatus status() const;

  // Ends the workers; see Device::stop. Idempotent.
  void stop();

 private:
  explicit Node(NodeOptions options) : options_(std::move(options)) {}

  const NodeOptions options_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::atomic<bool> draining_{false};
  mutable std::mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<SessionState>> sessions_;
  uint64_t next_session_ = 1;
  std::map<std::string, uint64_t, std::less<>> identities_;  // as many as there are tokens
  const std::shared_ptr<ContentStore> content_ = ContentStore::make();
};

}  // namespace genie::node
