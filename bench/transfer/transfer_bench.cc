// genie-bench transfer: the shared-memory transport beside memcpy (bandwidth) and beside a unix socket (latency, rate).
//
// Bandwidth: one thread writes into a region that the other end allocated; the peer is memcpy between the same buffers. An
// operation's fixed cost shows below 64 KiB, where there is no target. Latency and rate: two threads, each on a core of
// its own, messages one way and back, or one way; the peer is a SOCK_SEQPACKET socket pair. Polling is busy, or sleeps
// whenever there is nothing to do, without the spinning that an adaptive poller does first.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bench/benches.h"
#include "bench/harness/threads.h"
#include "datapath/base/file_descriptor.h"
#include "datapath/memory/arena.h"
#include "datapath/shm/shm_transport.h"

namespace genie::bench {
namespace {

using namespace genie::datapath;

void check(const Status& status, const char* what) {
  if (!status.ok()) throw std::runtime_error(std::string(what) + ": " + status.to_string());
}

// A listener and a client in one process, connected.
class Pair {
 public:
  Pair() {
    const auto path = std::filesystem::temp_directory_path() / ("genie-bench-" + std::to_string(::getpid()) + ".sock");
    check(listener->listen("unix:" + path.string()), "listen");
    with_listener([&] {
      Result<EndpointId> made = client->connect(listener->address(), {}, Deadline::after_ms(10'000));
      check(made.status(), "connect");
      client_end = *made;
    });
    std::array<Completion, 4> out;
    while (!listener_end.valid()) {
      if (listener->poll(out) != 0) listener_end = out[0].endpoint;
    }
  }

  // A region of the client, mapped by the listener: where a node writes results.
  RemoteRegion share(size_t size) {
    with_listener([&] {
      Result<Region> made = client->allocate(client_end, size, Deadline::after_ms(10'000));
      check(made.status(), "allocate");
      region = *made;
    });
    Result<RemoteRegion> remote = listener->import_region(listener_end, region.remote);
    check(remote.status(), "import");
    return *remote;
  }

  void unshare(const RemoteRegion& remote) {
    check(listener->drop_import(remote), "drop");
    check(client->release(region.key), "release");
    std::array<Completion, 4> out;
    for (int i = 0; i < 1000; ++i) listener->poll(out);
  }

  std::unique_ptr<Transport> listener = make_shm_transport();
  std::unique_ptr<Transport> client = make_shm_transport();
  EndpointId listener_end;
  EndpointId client_end;
  Region region;

 private:
  // Runs a blocking call of the client while the listener serves it.
  template <class Call>
  void with_listener(Call&& call) {
    std::atomic<bool> done{false};
    std::thread serving([&] {
      std::array<Completion, 4> out;
      while (!done.load()) {
        if (listener->poll(out) != 0) listener_end = out[0].endpoint;
        listener->wait(100'000);
      }
    });
    try {
      call();
    } catch (...) {
      done.store(true);
      serving.join();
      throw;
    }
    done.store(true);
    serving.join();
  }
};

// Bytes per run: enough to be measured, and several operations of the large sizes.
size_t bytes_per_run(Harness& harness, size_t bytes) {
  const size_t wanted = harness.full_or_quick<size_t>(size_t{64} << 20, size_t{8} << 20);
  return std::max(bytes, bytes < 4096 ? wanted / 16 : wanted);
}

// Small operations are posted this many at a time, as a caller with more than one tensor would.
constexpr size_t kDepth = 16;
constexpr size_t kSmall = size_t{64} << 10;

void run_bandwidth(Harness& harness) {
  Pair pair;
  for (size_t bytes = 64; bytes <= size_t{256} << 20; bytes *= 4) {
    for (const bool writes : {true, false}) {
      const std::optional<double> target = bytes < kSmall ? std::nullopt : std::optional(0.95);
      const size_t depth = bytes <= kSmall ? kDepth : 1;
      const Json params = {{"transport", "shm"}, {"op", writes ? "write" : "read"}, {"bytes", bytes}, {"depth", depth}};
      if (!harness.wants("transfer.bandwidth", params)) continue;
      const RemoteRegion remote = pair.share(bytes);
      auto arena = Arena::make({.size_bytes = bytes, .hugepages = false});
      check(arena.status(), "arena");
      const std::span<std::byte> local = (*arena)->memory().subspan(0, bytes);
      std::memset(local.data(), 1, local.size());
      const size_t count = bytes_per_run(harness, bytes) / bytes;
      const auto rate = [&](uint64_t begun) {
        return static_cast<double>(bytes * count) / static_cast<double>(now_ns() - begun);
      };
      harness
          .row({.name = "transfer.bandwidth",
                .params = params,
                .unit = "GB/s",
                .better = Better::kHigher,
                .target = target})
          .ours([&] {
            std::array<Completion, kDepth> out;
            const uint64_t begun = now_ns();
            const PostOptions options{.transfer_class = TransferClass::kBulk, .deadline = Deadline::after_ms(60'000)};
            for (size_t i = 0; i < count; i += depth) {
              for (size_t posted = 0; posted < depth; ++posted) {
                Buffer buffer = Buffer::borrow(local);
                check(writes ? pair.listener->write(pair.listener_end, buffer, remote, 0, options)
                             : pair.listener->read(pair.listener_end, buffer, remote, 0, options),
                      "post");
              }
              for (size_t ended = 0; ended < depth;) ended += pair.listener->poll(out);
            }
            return rate(begun);
          })
          .peer("memcpy",
                [&] {
                  std::byte* to = writes ? remote.mapped : local.data();
                  const std::byte* from = writes ? local.data() : remote.mapped;
                  const uint64_t begun = now_ns();
                  for (size_t i = 0; i < count; ++i) {
                    std::memcpy(to, from, bytes);
                    asm volatile("" ::: "memory");
                  }
                  return rate(begun);
                })
          .measure();
      pair.unshare(remote);
    }
  }
}

// One end of a conversation: sends a message, or waits for the next one.
struct Talker {
  std::function<void()> send;
  std::function<void()> receive;
};

struct Conversation {
  Talker first;
  Talker second;
};

Conversation over_transport(Pair& pair, std::vector<std::byte>& bytes, bool sleeps) {
  const auto talker = [&bytes, sleeps](Transport& side, EndpointId end) {
    Talker made;
    made.send = [&bytes, &side, end] {
      std::array<Completion, 16> out;
      const PostOptions options{.deadline = Deadline::after_ms(60'000)};
      for (Buffer message = Buffer::borrow(bytes); side.send(end, message, 0, options).code() == Errc::kAgain;) {
        side.poll(out);
      }
    };
    made.receive = [&side, sleeps] {
      std::array<Completion, 16> out;
      for (;;) {
        const size_t count = side.poll(std::span(out).first(1));
        if (count == 1 && out[0].opcode == Opcode::kReceive) return;
        if (count == 0 && sleeps) side.wait(1'000'000'000);
      }
    };
    return made;
  };
  return {talker(*pair.listener, pair.listener_end), talker(*pair.client, pair.client_end)};
}

struct Sockets {
  Sockets() {
    std::array<int, 2> made;
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, made.data()) != 0)
      throw std::runtime_error("socketpair");
    first = FileDescriptor(made[0]);
    second = FileDescriptor(made[1]);
  }
  FileDescriptor first;
  FileDescriptor second;
};

Conversation over_sockets(Sockets& sockets, std::vector<std::byte>& bytes) {
  const auto talker = [&bytes](int fd) {
    Talker made;
    made.send = [&bytes, fd] {
      if (::send(fd, bytes.data(), bytes.size(), 0) < 0) throw std::runtime_error("send");
    };
    made.receive = [&bytes, fd] {
      std::array<std::byte, 16384> into;
      if (::recv(fd, into.data(), into.size(), 0) < 0) throw std::runtime_error("recv");
    };
    return made;
  };
  return {talker(sockets.first.get()), talker(sockets.second.get())};
}

// Half of each round trip, in nanoseconds.
void ping_pong(const Conversation& talk, size_t rounds, Samples& samples) {
  const std::array<std::function<void()>, 2> both = {[&] {
                                                       for (size_t i = 0; i < rounds; ++i) {
                                                         const uint64_t begun = now_ns();
                                                         talk.first.send();
                                                         talk.first.receive();
                                                         samples.add(static_cast<double>(now_ns() - begun) / 2);
                                                       }
                                                     },
                                                     [&] {
                                                       for (size_t i = 0; i < rounds; ++i) {
                                                         talk.second.receive();
                                                         talk.second.send();
                                                       }
                                                     }};
  run_on_cores(both);
}

// Millions of messages a second, one way.
double stream(const Conversation& talk, size_t count) {
  const std::array<std::function<void()>, 2> both = {[&] {
                                                       for (size_t i = 0; i < count; ++i) talk.first.send();
                                                       talk.first.receive();
                                                     },
                                                     [&] {
                                                       for (size_t i = 0; i < count; ++i) talk.second.receive();
                                                       talk.second.send();
                                                     }};
  return static_cast<double>(count) * 1e3 / static_cast<double>(run_on_cores(both));
}

void run_messages(Harness& harness) {
  Pair pair;
  Sockets sockets;
  for (const size_t bytes : {size_t{8}, size_t{256}, size_t{4096}, size_t{16384}}) {
    std::vector<std::byte> message(bytes);
    const Conversation socket_talk = over_sockets(sockets, message);
    for (const bool sleeps : {false, true}) {
      const Conversation talk = over_transport(pair, message, sleeps);
      const Json params = {
          {"transport", "shm"}, {"op", "send"}, {"bytes", bytes}, {"polling", sleeps ? "sleep" : "busy"}};
      const size_t rounds = harness.full_or_quick<size_t>(5'000, 1'000);
      harness.row({.name = "transfer.latency", .params = params, .unit = "ns", .better = Better::kLower, .target = 1.0})
          .ours([&](Samples& samples) { ping_pong(talk, rounds, samples); })
          .peer("unix socket", [&](Samples& samples) { ping_pong(socket_talk, rounds, samples); })
          .measure();
      const size_t count = harness.full_or_quick<size_t>(100'000, 20'000);
      harness
          .row({.name = "transfer.message_rate",
                .params = params,
                .unit = "Mmsg/s",
                .better = Better::kHigher,
                .target = 1.0})
          .ours([&] { return stream(talk, count); })
          .peer("unix socket", [&] { return stream(socket_talk, count); })
          .measure();
    }
  }
}

void run_transfer(Harness& harness) {
  run_bandwidth(harness);
  run_messages(harness);
}

const Registration kTransfer("transfer", run_transfer);

}  // namespace
}  // namespace genie::bench
