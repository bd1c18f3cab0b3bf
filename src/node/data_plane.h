// DataPlane: one transport of a node, and the poller between it and the devices.
//
// Purpose: the poller thread owns the transport: it copies messages out, verifies them, hands work to the devices' queues, and
//   sends what their workers answer. A node has one data plane for each way in which clients may reach it.
// Thread-safety: all public functions may be called from any thread.
// Ownership: owns its transport; shares the sessions that connected to it. The node and the table outlive it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "datapath/backends.h"
#include "src/node/node.h"
#include "src/node/remote_session.h"
#include "src/node/session_table.h"

namespace genie::node {

struct DataPlaneOptions {
  std::string transport;  // as make_backend() knows it
  std::string listen;
  datapath::BackendOptions backend;
  bool busy_polling = false;
};

class DataPlane {
 public:
  static Result<std::unique_ptr<DataPlane>> start(const DataPlaneOptions& options, Node& node, SessionTable& table);
  ~DataPlane();

  const std::string& transport_name() const noexcept { return options_.transport; }
  const std::string& address() const noexcept { return address_; }

  // Its client asks for the end of a session of this plane.
  void close_session(std::shared_ptr<RemoteSession> session) { post({.session = std::move(session)}); }
  // From now on sessions end when their submissions in flight are answered.
  void start_draining();
  // Ends the poller; what is in flight is answered to nobody from then on. Idempotent.
  void stop_polling();
  // Lets go of every session and of the transport, after the node has stopped.
  void end_sessions();

 private:
  class Sink;
  // What other threads ask of the poller.
  struct Event {
    std::shared_ptr<RemoteSession> session;
    std::unique_ptr<Response> response;
    std::optional<uint64_t> question;  // that can be answered now; neither of both: the client closes the session
  };

  DataPlane(const DataPlaneOptions& options, Node& node, SessionTable& table)
      : options_(options), node_(node), table_(table) {}
  void post(Event event);

  // The poller's.
  void run();
  void on_completion(datapath::Completion& completion);
  void on_connected(datapath::EndpointId endpoint);
  void on_message(datapath::Completion& completion);
  size_t take_inbox();
  bool pump_sessions();
  void tend_sessions();
  void tend_unclaimed(uint64_t now_ns, bool draining);
  bool nothing_in_flight() const;
  void sleep();
  void end_session(const std::shared_ptr<RemoteSession>& session, const Status& why, bool tell);
  std::shared_ptr<RemoteSession> session_of(datapath::EndpointId endpoint);
  const std::string& node_name() const noexcept { return node_.options().name; }

  const DataPlaneOptions options_;
  Node& node_;
  SessionTable& table_;
  std::unique_ptr<datapath::Transport> transport_;
  std::string address_;

  std::mutex inbox_mutex_;
  std::vector<Event> inbox_;
  std::atomic<uint64_t> inbox_count_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> draining_{false};
  std::atomic<bool> stopping_{false};
  std::thread poller_;

  // The poller's own.
  std::vector<std::shared_ptr<RemoteSession>> live_;
  std::unordered_map<uint64_t, std::shared_ptr<RemoteSession>> by_endpoint_;
  std::unordered_map<uint64_t, std::shared_ptr<Sink>> sinks_;  // by session number
  std::vector<Event> taken_;
  uint64_t next_tend_ns_ = 0;
};

}  // namespace genie::node
