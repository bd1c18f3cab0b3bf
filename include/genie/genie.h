// Genie: accelerators of other machines as devices of this PyTorch program.
//
// Purpose: the whole public interface. A program opens a session, moves its model to `remote_accelerator:0` and runs it; operations
//   are captured and run on a node when a value is needed.
// Thread-safety: every function may be called from any thread. Each operator call is atomic; a thread's operations keep their
//   program order; two threads that touch one tensor must order themselves, as with any PyTorch device.
// Ownership: a Session is a handle; the session ends with its last handle. Tensors may outlive it: using them is then a clear error.
// Errors: genie::Error (a std::runtime_error that carries a Status) with what failed, where, and what to do. Errors of operators
//   that ran later than they were called surface where the value is used, and again at every further use of what they would
//   have written.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <memory>
#include <string>

#include "genie/capture.h"
#include "genie/graph.h"
#include "genie/shapes.h"
#include "genie/stats.h"
#include "genie/status.h"
#include "genie/trace.h"

namespace genie {

struct SessionOptions {
  uint64_t connect_timeout_ms = 10'000;
  uint64_t progress_timeout_ms = 30'000;  // a wait fails after this long without progress on the node
  bool busy_polling = false;              // spin instead of sleeping; for clients that own their core
  std::string transport = "auto";         // the best that both ends have; or "shm", "ucx", "verbs"
  std::string token;                      // where the node asks for one; empty: from the file $GENIE_TOKEN_FILE
  uint64_t peer_timeout_ms = 5'000;       // across machines: a node that is silent for so long has gone; 0: never
  std::string rdma_devices;               // "mlx5_0,mlx5_2:1": those that verbs may use; empty: every port that is up
};

class GENIE_API Session {
 public:
  // uri: "embedded:" (a node inside this process), "unix:/path.sock" or "tcp://host:port" (a node's control address).
  // Throws Error. Without any session the first use of the device connects to $GENIE_CLUSTER, else to "embedded:".
  static Session connect(const std::string& uri, const SessionOptions& options = {});
  static Result<Session> try_connect(const std::string& uri, const SessionOptions& options = {});

  // Device 0 is planned (the planner places its work), 1 and on are the session's physical devices.
  c10::Device device(int index = 0) const;
  int device_count() const;
  // The node's name, its transport ("embedded", "shm", ...), its intra-op threads.
  std::string node_name() const;
  std::string transport() const;
  int node_threads() const;

  // Sends what is captured and waits for all of it; throws the first error that nobody has seen.
  void synchronize() const;
  Stats stats() const;
  // Ends the session on the node. Idempotent. Captured work that was not sent is dropped.
  void close();

 private:
  struct Impl;
  explicit Session(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

// -- Tensors ---------------------------------------------------------------------------------------------------------------
GENIE_API bool is_remote(const at::Tensor& tensor);
// Whether the node has been told to compute it: nothing captured for it waits to be sent.
GENIE_API bool is_materialized(const at::Tensor& tensor);

struct GENIE_API Description {
  std::string op;      // what wrote it last: "aten::addmm", "upload", "empty"
  std::string shape;   // "[2, 3]"
  std::string dtype;   // "Float"
  std::string device;  // "remote_accelerator:0"
  std::string module;  // module path of the caller; known with tracing only, see trace.h
  std::string state;   // "captured", "sent", "undefined", "poisoned"
  std::string to_string() const;
};
// Never runs or sends anything.
GENIE_API Description describe(const at::Tensor& tensor);
// Sends what the tensor needs and waits until it is computed.
GENIE_API void materialize(const at::Tensor& tensor);

// -- Process ---------------------------------------------------------------------------------------------------------------
// All sessions.
GENIE_API void synchronize();
// false: every operator runs on the node before its call returns, so that an error shows at its line (also GENIE_LAZY=0).
GENIE_API void set_lazy(bool lazy);
GENIE_API bool is_lazy();
// Sums over all sessions of the process.
GENIE_API Stats stats();
// The capture that the calling thread finished last. When it has finished none: what the thread has pending, or, when nothing is,
// what it sent last.
GENIE_API Graph graph();

}  // namespace genie
