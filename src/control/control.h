// The control plane: a node's gRPC service and its client, without a gRPC header.
//
// Purpose: open and close sessions, exchange versions and endpoints, register templates, status; beside it the standard
//   grpc.health.v1 service. Addresses: "unix:/path.sock" and "tcp://host:port".
// Thread-safety: all functions may be called from any thread; handler functions are called from gRPC's threads.
// Ownership: a server calls its handler until stop() has returned; the handler outlives the server.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "datapath/base/clock.h"
#include "genie/status.h"

namespace genie::control {

inline constexpr size_t kMaxTemplateBytes = size_t{64} << 20;

struct DeviceEntry {
  std::string kind;
  uint32_t threads = 1;
  uint64_t memory_bytes = 0;
};

struct OperatorEntry {
  std::string name;
  std::string overload;
  uint64_t schema_hash = 0;
};

struct OpenOrder {
  uint32_t protocol_version = 0;
  std::string genie_version;
  std::string torch_version;
  uint64_t schema_hash = 0;
  uint32_t operator_count = 0;
  std::string transport = "auto";
  std::string client_name;
  uint64_t progress_timeout_ms = 30'000;
};

// One way to a node's data.
struct DataOffer {
  std::string transport;
  std::string address;
};

struct OpenAnswer {
  std::string session_id;
  std::string node_name;
  std::string genie_version;
  std::string torch_version;
  std::vector<DeviceEntry> devices;
  std::vector<DataOffer> data;
  std::string data_token;
  std::string host_id;  // of the node's machine, see host_id.h
  uint32_t in_flight_max = 0;
  uint64_t templates_max = 0;
  uint64_t template_bytes_max = 0;
  std::vector<OperatorEntry> operators;  // besides PyTorch's
};

struct NodeReport {
  std::string node_name;
  std::string genie_version;
  std::string torch_version;
  std::vector<DeviceEntry> devices;
  std::string transport;  // of its data planes: "shm,ucx"
  bool draining = false;
  uint64_t sessions = 0;
  uint64_t sessions_opened = 0;
  uint64_t storages = 0;
  uint64_t storage_bytes = 0;
  uint64_t templates = 0;
  uint64_t in_flight = 0;
  uint64_t regions = 0;
  uint64_t region_bytes = 0;
  uint64_t records_executed = 0;
  uint64_t blobs = 0;             // large uploads that are known by their content,
  uint64_t blob_bytes = 0;        // and their bytes;
  uint64_t blob_known_bytes = 0;  // what sessions did not send, because they were here
};

class ControlHandler {
 public:
  virtual ~ControlHandler() = default;
  // `identity`: what the caller has proved to be; nobody learns it from a message.
  virtual Result<OpenAnswer> open(const OpenOrder& order, std::string_view identity) = 0;
  virtual void close(std::string_view session_id) = 0;
  virtual Result<uint64_t> register_template(std::string_view session_id, std::span<const std::byte> serialized,
                                             std::span<const uint64_t> forget) = 0;
  virtual NodeReport report() = 0;
};

struct ControlServerOptions {
  std::vector<std::string> listen;  // uris
  std::string token;                // empty: no authentication
  bool world_accessible = false;    // unix sockets get mode 0600 otherwise
};

class ControlServer {
 public:
  static Result<std::unique_ptr<ControlServer>> start(const ControlServerOptions& options, ControlHandler& handler);
  virtual ~ControlServer() = default;

  // The uris under which clients reach it; a port that was 0 is filled in.
  virtual const std::vector<std::string>& addresses() const = 0;
  // What the health service answers from now on.
  virtual void set_serving(bool serving) = 0;
  // Refuses new calls, lets running ones end until the deadline, then cancels them. Idempotent.
  virtual void stop(Deadline deadline) = 0;
};

class ControlClient {
 public:
  // Checks the uri; the first call connects. kInvalidArgument for a uri of another form.
  static Result<std::unique_ptr<ControlClient>> make(std::string_view uri, std::string token);
  virtual ~ControlClient() = default;

  // Errors that the node raised keep their code and text; kUnreachable when no node answers, kTimedOut.
  virtual Result<OpenAnswer> open(const OpenOrder& order, Deadline deadline) = 0;
  virtual Status close(std::string_view session_id, Deadline deadline) = 0;
  virtual Result<uint64_t> register_template(std::string_view session_id, std::span<const std::byte> serialized,
                                             std::span<const uint64_t> forget, Deadline deadline) = 0;
  virtual Result<NodeReport> report(Deadline deadline) = 0;
  // Whether the node's health service says SERVING.
  virtual Result<bool> healthy(Deadline deadline) = 0;
};

}  // namespace genie::control
