// genie-node: offers this machine's devices to sessions of other processes.
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "datapath/backends.h"
#include "datapath/base/log.h"
#include "src/node/node_config.h"
#include "src/node/server.h"
#include "src/node/server_options.h"

namespace {

using genie::Deadline;
using genie::Errc;
using genie::Result;
using genie::Status;
using genie::node::NodeConfig;
using genie::node::NodeServer;

enum ExitCode : int { kExitOk = 0, kExitConfig = 2, kExitListen = 3, kExitFailed = 4, kExitCutOff = 5 };

constexpr const char* kFooter = R"(Exit codes:
  0  stopped by SIGTERM or SIGINT, every submission in flight was finished
  2  a flag or a line of the configuration is wrong
  3  an address cannot be listened on
  4  the node cannot start for another reason
  5  stopped, and the time to drain was over before every submission was finished

SIGTERM and SIGINT drain: no new sessions, submissions in flight are finished, then sessions end. A second one ends at once.
Log: to stderr; level in $GENIE_LOG (debug, info, warn, error, off). With $NOTIFY_SOCKET, readiness is told to systemd.)";

// systemd's readiness protocol: one datagram.
void notify(const std::string& state) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr || (path[0] != '/' && path[0] != '@')) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::strlen(path);
  if (length >= sizeof(address.sun_path)) return;
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';  // an abstract socket
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  (void)!::sendto(fd, state.data(), state.size(), MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&address), size);
  ::close(fd);
}

int fail(ExitCode code, const Status& status) {
  std::fprintf(stderr, "genie-node: %s\n", status.to_string().c_str());
  return code;
}

ExitCode exit_code(const Status& status) {
  switch (status.code()) {
    case Errc::kConfig:
    case Errc::kInvalidArgument: return kExitConfig;
    case Errc::kAlreadyExists:
    case Errc::kIo: return kExitListen;
    default: return kExitFailed;
  }
}

struct Flags {
  std::string config;
  std::vector<std::string> listen, load_libraries;
  std::string name, transport, data_listen, peer_timeout_ms, rdma_devices, device, threads, memory_quota, max_sessions,
      max_templates, polling, token_file, drain_timeout_s;
};

void declare(CLI::App& app, Flags& flags) {
  app.footer(kFooter);
  app.set_version_flag("--version", std::string("genie-node ") + genie::node::kGenieVersion);
  app.add_option("--config", flags.config, "YAML file; flags win over it");
  app.add_option("--listen", flags.listen,
                 "Address of the control plane, may be repeated: unix:/path.sock, tcp://host:port");
  app.add_option("--transport", flags.transport,
                 "How bytes reach clients, one or several as in \"shm,ucx\": " + genie::datapath::backend_names() +
                     " (the default: shm, and where --listen has a tcp:// address or --data-listen is given, the "
                     "networks that work "
                     "here. Over TCP UCX trusts whoever reaches it: leave it out, or give it a network of your own)");
  app.add_option("--data-listen", flags.data_listen,
                 "Address of the data endpoint of network transports: tcp://host:port, a second one takes the next "
                 "port; by default "
                 "the host of --listen and any free port");
  app.add_option("--peer-timeout-ms", flags.peer_timeout_ms,
                 "Across machines, a client that is silent for so long has gone; 5000 by default, 0: never");
  app.add_option("--rdma-devices", flags.rdma_devices,
                 "RDMA devices or ports that verbs may use: mlx5_0,mlx5_2:1; by default every port that is up");
  app.add_option("--device", flags.device, "Device to offer: cpu");
  app.add_option("--threads", flags.threads, "Threads of one operation; 0: the device's default");
  app.add_option("--memory-quota", flags.memory_quota,
                 "Memory of one session: 512MiB, 8GiB, unlimited; by default 80 % of the machine's");
  app.add_option("--max-sessions", flags.max_sessions,
                 "Sessions at a time; 4096 by default. Each takes a descriptor, and a second one while it talks to the "
                 "control plane (ulimit -Hn)");
  app.add_option("--max-templates", flags.max_templates, "Templates that one session may have registered at a time");
  app.add_option(
      "--polling", flags.polling,
      "adaptive (spins, then sleeps) or busy (never sleeps while it has sessions: a core for each transport in "
      "use, and one for the device)");
  app.add_option("--token-file", flags.token_file, "File with the token that clients must give");
  app.add_option("--drain-timeout-s", flags.drain_timeout_s, "How long SIGTERM waits for submissions in flight");
  app.add_option(
      "--load-library", flags.load_libraries,
      "Shared library that defines operators (TORCH_LIBRARY) for clients to use, may be repeated. Their kernels are "
      "trusted: they must check their operands");
  app.add_option("--name", flags.name, "The node's name in messages; the host's by default");
}

Status apply(const Flags& flags, NodeConfig& config) {
  if (!flags.config.empty()) GENIE_TRY(genie::node::read_config_file(flags.config, config));
  const auto set = [&](const char* key, const char* flag, const std::string& value) -> Status {
    return value.empty() ? Status() : genie::node::set_config(key, value, std::string(flag) + ": ", config);
  };
  if (!flags.listen.empty()) config.listen.clear();
  for (const std::string& uri : flags.listen) GENIE_TRY(set("listen", "--listen", uri));
  if (!flags.load_libraries.empty()) config.load_libraries.clear();
  for (const std::string& path : flags.load_libraries) GENIE_TRY(set("load_library", "--load-library", path));
  GENIE_TRY(set("name", "--name", flags.name));
  GENIE_TRY(set("transport", "--transport", flags.transport));
  GENIE_TRY(set("data_listen", "--data-listen", flags.data_listen));
  GENIE_TRY(set("peer_timeout_ms", "--peer-timeout-ms", flags.peer_timeout_ms));
  GENIE_TRY(set("rdma_devices", "--rdma-devices", flags.rdma_devices));
  GENIE_TRY(set("device", "--device", flags.device));
  GENIE_TRY(set("threads", "--threads", flags.threads));
  GENIE_TRY(set("memory_quota", "--memory-quota", flags.memory_quota));
  GENIE_TRY(set("max_sessions", "--max-sessions", flags.max_sessions));
  GENIE_TRY(set("max_templates", "--max-templates", flags.max_templates));
  GENIE_TRY(set("polling", "--polling", flags.polling));
  GENIE_TRY(set("token_file", "--token-file", flags.token_file));
  return set("drain_timeout_s", "--drain-timeout-s", flags.drain_timeout_s);
}

void say_ready(NodeServer& server) {
  const auto info = server.node().info();
  std::string control;
  for (const std::string& address : server.control_addresses()) control += (control.empty() ? "" : ",") + address;
  const std::string line = fmt::format("name={} control={} data={} transport={} device={} threads={}", info.name,
                                       control, server.data_addresses(), server.transport_names(),
                                       info.devices.at(0).kind, info.devices.at(0).threads);
  std::fprintf(stderr, "genie-node: ready %s\n", line.c_str());
  notify("READY=1\nSTATUS=" + line);
}

// Sockets of clients: what systems allow by default is for programs with a handful.
void allow_descriptors() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
}

int serve(const NodeConfig& config, const sigset_t& signals) {
  Result<genie::node::ServerOptions> options = genie::node::server_options(config);
  if (!options) return fail(kExitConfig, options.status());
  // Before clients ask which operators there are.
  for (const std::string& path : config.load_libraries) {
    if (Status status = genie::executor::load_operator_library(path); !status.ok()) return fail(kExitConfig, status);
  }
  genie::executor::use_placed_memory();
  Result<std::unique_ptr<NodeServer>> server = NodeServer::start(std::move(*options));
  if (!server) return fail(exit_code(server.status()), server.status());
  say_ready(**server);

  int signal = 0;
  while (::sigwait(&signals, &signal) != 0) {
  }
  std::fprintf(stderr, "genie-node: draining after signal %d\n", signal);
  notify("STOPPING=1");
  const Deadline deadline = Deadline::after_ms(config.drain_timeout_s * 1000);
  constexpr uint64_t kLookMs = 50;
  bool drained = false;
  do {
    drained = (*server)->drain(Deadline::after_ms(kLookMs));
    const timespec no_wait{};
    if (!drained && ::sigtimedwait(&signals, nullptr, &no_wait) > 0) break;
  } while (!drained && !deadline.expired());
  (*server)->stop();
  std::fprintf(stderr, "genie-node: stopped%s\n", drained ? "" : "; submissions in flight were cut off");
  return drained ? kExitOk : kExitCutOff;
}

}  // namespace

int main(int argc, char** argv) {
  // Before any thread is made, so that all of them leave these signals to sigwait().
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  allow_descriptors();
  // libtorch asks for huge pages for results from 2 MiB on then: fresh ones are written three times as fast.
  ::setenv("THP_MEM_ALLOC_ENABLE", "1", 0);

  CLI::App app("Offers this machine's devices to Genie sessions of other processes.", "genie-node");
  Flags flags;
  declare(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitConfig;
  }
  NodeConfig config;
  if (Status status = apply(flags, config); !status.ok()) return fail(kExitConfig, status);
  return serve(config, signals);
}
