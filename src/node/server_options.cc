#include "src/node/server_options.h"

#include <unistd.h>

#include <array>
#include <utility>

#include "src/control/token.h"

namespace genie::node {

Result<ServerOptions> server_options(const NodeConfig& config) {
  ServerOptions options;
  options.node.name = config.name;
  if (options.node.name.empty()) {
    std::array<char, 256> host{};
    options.node.name = ::gethostname(host.data(), host.size() - 1) == 0 ? host.data() : "node";
  }
  options.node.devices = {DeviceOptions{.kind = config.device,
                                        .threads = config.threads,
                                        .queue_capacity = 1024,
                                        .busy_polling = config.polling == "busy"}};
  options.node.session_limits.memory_bytes =
      config.memory_quota_bytes != 0 ? config.memory_quota_bytes : physical_memory_bytes() / 10 * 8;
  options.node.sessions_max = config.max_sessions;
  options.node.session_limits.templates = config.max_templates;
  options.listen = config.listen;
  options.transport = config.transport;
  options.data_listen = config.data_listen;
  options.backend.liveness_ms = config.peer_timeout_ms;
  options.backend.verbs_devices = config.rdma_devices;
  options.busy_polling = config.polling == "busy";
  if (config.listen.empty()) {
    return Status(Errc::kConfig,
                  "nothing to listen on: give --listen unix:/path.sock or tcp://host:port, or 'listen' in the file");
  }
  if (config.token_file.empty()) return options;
  Result<std::string> token = control::read_token_file(config.token_file);
  GENIE_TRY(token.status());
  options.token = std::move(*token);
  return options;
}

}  // namespace genie::node
