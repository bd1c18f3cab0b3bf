// NodeServer: a node offered to other processes: control plane, transport, and the poller between them and the devices.
//
// Purpose: what genie-node runs. One poller thread owns the transport: it copies messages out, verifies them, hands work
//   to the devices' queues, and sends what their workers answer.
// Thread-safety: all functions may be called from any thread.
// Ownership: owns the node. Destruction ends every session.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "datapath/backends.h"
#include "src/control/control.h"
#include "src/node/node.h"
#include "src/node/remote_session.h"

namespace genie::node {

struct ServerOptions {
  NodeOptions node;
  std::vector<std::string> listen;
  std::string transport = "auto";
  std::string data_listen;  // of a network transport: tcp://host:port; empty: the host of `listen`, any port
  std::string token;
  bool busy_polling = false;
  uint64_t attach_timeout_ms = 10'000;  // from Open to the data connection
};

class NodeServer final : public control::ControlHandler {
 public:
  static Result<std::unique_ptr<NodeServer>> start(ServerOptions options);
  ~NodeServer() override;

  const std::vector<std::string>& control_addresses() const { return control_->addresses(); }
  const std::string& data_address() const { return data_address_; }
  const std::string& transport_name() const { return transport_name_; }
  Node& node() noexcept { return *node_; }

  // Refuses new sessions, ends each session once its submissions in flight are answered, all by the deadline. True when
  // nothing had to be cut off.
  bool drain(Deadline deadline);
  // Ends everything. Idempotent.
  void stop();

  // ControlHandler.
  Result<control::OpenAnswer> open(const control::OpenOrder& order) override;
  void close(std::string_view session_id) override;
  Result<uint64_t> register_template(std::string_view session_id, std::span<const std::byte> serialized,
                                     std::span<const uint64_t> forget) override;
  control::NodeReport report() override;

 private:
  class Sink;
  // What other threads ask of the poller.
  struct Event {
    std::shared_ptr<RemoteSession> session;
    std::unique_ptr<Response> response;  // null: the client closes the session
  };

  explicit NodeServer(ServerOptions options) : options_(std::move(options)) {}
  Status start_transport();
  Result<std::string> data_place();
  Status check_versions(const control::OpenOrder& order) const;
  std::shared_ptr<RemoteSession> find(std::string_view session_id);

  // The poller's.
  void run();
  void on_completion(datapath::Completion& completion);
  void on_connected(datapath::EndpointId endpoint);
  void on_message(datapath::Completion& completion);
  size_t take_inbox();
  bool pump_sessions();
  void tend_sessions();
  void sleep();
  void end_session(const std::shared_ptr<RemoteSession>& session, const Status& why, bool tell);
  void post(Event event);
  std::shared_ptr<RemoteSession> session_of(datapath::EndpointId endpoint);

  const ServerOptions options_;
  executor::OperatorSet operators_;
  std::unique_ptr<Node> node_;
  std::unique_ptr<datapath::Transport> transport_;
  std::string transport_name_;
  std::string data_address_;
  std::string data_folder_;  // made for the data socket; removed at the end
  std::unique_ptr<control::ControlServer> control_;
  SharedMemoryCounters shared_;

  std::mutex table_mutex_;
  std::unordered_map<std::string, std::shared_ptr<RemoteSession>> sessions_;  // by id

  std::mutex inbox_mutex_;
  std::vector<Event> inbox_;
  std::atomic<uint64_t> inbox_count_{0};
  std::atomic<int> sleeping_{0};

  std::atomic<bool> draining_{false};
  std::atomic<bool> stopping_{false};
  std::mutex stop_mutex_;
  std::thread poller_;

  // The poller's own.
  std::vector<std::shared_ptr<RemoteSession>> live_;  // what it looks after; the table may be ahead by new ones
  std::unordered_map<uint64_t, std::shared_ptr<RemoteSession>> by_endpoint_;
  std::unordered_map<uint64_t, std::shared_ptr<ResponseSink>> sinks_;  // by session number
  std::vector<Event> taken_;
  uint64_t next_tend_ns_ = 0;
};

}  // namespace genie::node
