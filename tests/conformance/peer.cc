#include "tests/conformance/peer.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <optional>

#include "tests/conformance/world.h"

namespace genie::datapath::conformance {

pid_t start_peer(const std::string& backend, const std::string& address, const std::string& role) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::execl("/proc/self/exe", "test_transport", "peer", backend.c_str(), address.c_str(), role.c_str(),
          static_cast<char*>(nullptr));
  ::_exit(127);
}

void kill_peer(pid_t peer) {
  ::kill(peer, SIGKILL);
  int status = 0;
  ::waitpid(peer, &status, 0);
}

int peer_main(int, char** argv) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::unique_ptr<Transport> transport;
  for (const Backend& backend : backends()) {
    if (backend.name == argv[2]) transport = backend.make_remote_client();
  }
  if (transport == nullptr) return 2;
  const std::string role = argv[4];
  Result<EndpointId> endpoint = transport->connect(argv[3], as_bytes(role), Deadline::after_ms(patience_ms()));
  if (!endpoint.ok()) return 3;
  if (role == "owner") {
    Result<Region> region = transport->allocate(*endpoint, 1 << 20, Deadline::after_ms(patience_ms()));
    if (!region.ok()) return 4;
    Buffer key = make_buffer(sizeof(RemoteKey), 0);
    std::memcpy(key.data(), region->remote.bytes.data(), sizeof(RemoteKey));
    if (!transport->send(*endpoint, key, 1, {}).ok()) return 5;
  }
  if (role == "silent") ::raise(SIGSTOP);
  std::optional<RemoteRegion> target;
  uint32_t sent = 0;
  for (std::array<Completion, 16> completions;;) {
    const size_t count = transport->poll(completions);
    for (size_t i = 0; i < count; ++i) {
      if (completions[i].opcode == Opcode::kDisconnected) return 0;
      if (role == "writer" && completions[i].opcode == Opcode::kReceive) {
        RemoteKey key;
        if (completions[i].buffer.size() != sizeof(key)) return 6;
        std::memcpy(key.bytes.data(), completions[i].buffer.data(), sizeof(key));
        const Result<RemoteRegion> imported = transport->import_region(*endpoint, key);
        if (!imported.ok()) return 7;
        target = *imported;
      }
      completions[i] = Completion();
    }
    if (role == "chatty") {
      Buffer message = make_buffer(100, sent);
      if (transport->send(*endpoint, message, sent, {}).ok()) ++sent;
    } else if (target.has_value()) {
      constexpr size_t kBytes = 32;
      for (Buffer bytes = make_buffer(kBytes, 1);
           transport->write(*endpoint, bytes, *target, sent * kBytes % target->size, {}).ok(); ++sent) {
        bytes = make_buffer(kBytes, 1);
      }
    } else if (count == 0) {
      transport->wait(100'000'000);
    }
  }
}

}  // namespace genie::datapath::conformance
