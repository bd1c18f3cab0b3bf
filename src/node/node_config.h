// A node's configuration: from a YAML file, from flags, or both (flags win).
//
// Purpose: every wrong line gives file:line, the key and what is allowed (kConfig).
// Thread-safety: any thread. Ownership: values.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "genie/status.h"

namespace genie::node {

struct NodeConfig {
  std::string name;  // empty: the host's
  std::vector<std::string> listen;
  std::string transport = "auto";    // or names of transports: "shm,ucx"
  std::string data_listen;           // of network transports; empty: the host of `listen`, any port
  uint64_t peer_timeout_ms = 5'000;  // across machines: a client that is silent for so long has gone; 0: never
  std::string rdma_devices;          // "mlx5_0,mlx5_2:1": those that verbs may use; empty: every port that is up
  std::string device = "cpu";
  int threads = 0;                  // 0: the device's default
  uint64_t memory_quota_bytes = 0;  // of one session; 0: most of the machine's memory
  uint64_t max_sessions = 4096;
  uint64_t max_templates = 4096;  // of one session
  std::string polling = "adaptive";
  std::string token_file;
  uint64_t drain_timeout_s = 30;
  std::vector<std::string> load_libraries;  // that define operators
};

// Overwrites in `config` what the file sets.
Status read_config_file(const std::string& path, NodeConfig& config);
// The same for one key, as the flags give it; `where` begins the error's text.
Status set_config(std::string_view key, const std::string& value, const std::string& where, NodeConfig& config);

// "512MiB", "8GiB", "1000000", "unlimited".
Result<uint64_t> parse_bytes(std::string_view text);

}  // namespace genie::node
