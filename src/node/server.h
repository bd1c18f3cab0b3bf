// NodeServer: a node offered to other processes: its control plane and its data planes.
//
// Purpose: what genie-node runs: admits clients on the control plane, and serves them on a data plane for each transport.
// Thread-safety: all functions may be called from any thread.
// Ownership: owns the node. Destruction ends every session.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "datapath/backends.h"
#include "src/control/control.h"
#include "src/node/data_plane.h"
#include "src/node/node.h"
#include "src/node/session_table.h"

namespace genie::node {

struct ServerOptions {
  NodeOptions node;
  std::vector<std::string> listen;
  std::string transport = "auto";  // or names of transports: "shm,ucx"
  // Of network transports: tcp://host:port, each after the first takes the next port. Empty: the host of `listen`, any port.
  std::string data_listen;
  datapath::BackendOptions backend;
  std::string token;
  bool busy_polling = false;
  uint64_t attach_timeout_ms = 10'000;  // from Open to the data connection
};

class NodeServer final : public control::ControlHandler {
 public:
  static Result<std::unique_ptr<NodeServer>> start(ServerOptions options);
  ~NodeServer() override;

  const std::vector<std::string>& control_addresses() const { return control_->addresses(); }
  // Of all data planes, in the same order: "shm,ucx" and "unix:/path.data,tcp://host:port".
  std::string transport_names() const;
  std::string data_addresses() const;
  Node& node() noexcept { return *node_; }

  // Refuses new sessions, ends each session once its submissions in flight are answered, all by the deadline. True when
  // nothing had to be cut off.
  bool drain(Deadline deadline);
  // Ends everything. Idempotent.
  void stop();

  // ControlHandler.
  Result<control::OpenAnswer> open(const control::OpenOrder& order, std::string_view identity) override;
  void close(std::string_view session_id) override;
  Result<uint64_t> register_template(std::string_view session_id, std::span<const std::byte> serialized,
                                     std::span<const uint64_t> forget) override;
  control::NodeReport report() override;

 private:
  explicit NodeServer(ServerOptions options) : options_(std::move(options)) {}
  Status start_planes();
  // `by_itself`: nobody named it.
  Status start_plane(const std::string& name, const std::string& where, bool by_itself);
  std::string listened_on(std::string_view scheme) const;
  Result<std::string> network_place(size_t nth) const;
  Result<std::string> shm_place();
  Status check_versions(const control::OpenOrder& order) const;

  const ServerOptions options_;
  executor::OperatorSet operators_;
  std::unique_ptr<Node> node_;
  SharedMemoryCounters shared_;
  SessionTable table_;
  std::vector<std::unique_ptr<DataPlane>> planes_;
  std::string data_folder_;  // made for the data socket; removed at the end
  std::unique_ptr<control::ControlServer> control_;

  std::atomic<bool> draining_{false};
  std::mutex stop_mutex_;
};

}  // namespace genie::node
