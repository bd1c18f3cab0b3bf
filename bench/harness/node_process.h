// A genie-node beside this program, in a process of its own, for benches that cross processes.
//
// Purpose: the installed or built genie-node that lies in the folder of this program, with default settings but these.
// Thread-safety: one thread. Ownership: the destructor ends the process (SIGTERM, then SIGKILL) and removes its folder; the
//   node also ends when this process dies.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <thread>

namespace genie::bench {

struct NodeSettings {
  int threads = 1;
  std::string transport = "shm";
  std::optional<int> core = std::nullopt;  // the only one of the process
};

class NodeProcess {
 public:
  // Returns when the node is ready; throws std::runtime_error with what it wrote when it ends instead, or is silent too long.
  explicit NodeProcess(const NodeSettings& settings);
  NodeProcess(const NodeProcess&) = delete;
  NodeProcess& operator=(const NodeProcess&) = delete;
  ~NodeProcess();

  pid_t process() const noexcept { return pid_; }
  std::string uri() const { return "unix:" + folder_ + "/node.sock"; }

 private:
  void start(const std::string& program, const NodeSettings& settings);
  void stop() noexcept;

  std::string folder_;
  pid_t pid_ = -1;
  int errors_ = -1;
  std::thread drain_;  // a full pipe would stop the node
};

}  // namespace genie::bench
