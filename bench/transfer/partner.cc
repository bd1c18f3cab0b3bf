// The partner: the process on the other side, which does as it is told.
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "bench/transfer/end.h"

namespace genie::bench {
namespace {

using datapath::TransferClass;

class Partner {
 public:
  Partner(End& end, int socket) : end_(end), socket_(socket) { end_.need_local(kEchoBytesMax); }

  // Until it is told to quit, or the other process has gone.
  void run() {
    end_.set_sleeps(true);
    for (;;) {
      std::optional<Order> order;
      // No patience here: the other process may be measuring something else for long.
      while (!(order = end_.take_order())) {
        if (end_.gone()) return;
        if (end_.poll() == 0 && !busy_) end_.transport().wait(kIdleNs);
      }
      if (order->task == Task::kQuit) return;
      if (order->task <= Task::kServeAsleep) {
        busy_ = order->task == Task::kServe;
        end_.set_sleeps(!busy_);
      }
      obey(*order);
    }
  }

 private:
  static constexpr uint64_t kIdleNs = 100'000'000;

  void obey(const Order& order) {
    switch (order.task) {
      case Task::kShare:
        end_.unshare();
        end_.reply({.key = order.bytes != 0 ? end_.share(order.bytes) : datapath::RemoteKey()});
        break;
      case Task::kImport:
        end_.import(order.key);
        end_.reply({});
        break;
      case Task::kEchoSends: echo_sends(order); break;
      case Task::kEchoWrites: echo_writes(order); break;
      case Task::kCountSends:
        end_.until([&] { return end_.received() >= order.count; });
        end_.forget_received();
        end_.reply({});
        break;
      case Task::kSocketEcho:
        for (uint64_t i = 0; i < order.count; ++i) {
          socket_receive(order.bytes);
          if (::send(socket_, socket_bytes_.data(), order.bytes, 0) < 0) throw std::runtime_error("send");
        }
        break;
      case Task::kSocketCount:
        for (uint64_t i = 0; i < order.count; ++i) socket_receive(order.bytes);
        if (::send(socket_, socket_bytes_.data(), 1, 0) < 0) throw std::runtime_error("send");
        break;
      case Task::kCpu: end_.reply({.value = process_cpu_ns()}); break;
      default: end_.reply({});
    }
  }

  void echo_sends(const Order& order) {
    end_.reply({});
    for (uint64_t i = 1; i <= order.count; ++i) {
      end_.until([&] { return end_.received() >= i; });
      end_.send(nullptr, order.bytes, Kind::kData);
    }
    end_.forget_received();
  }

  void echo_writes(const Order& order) {
    end_.reply({});
    for (uint64_t i = 1; i <= order.count; ++i) {
      end_.until([&] { return end_.stamp(order.bytes) == order.base + i && end_.in_flight() == 0; });
      end_.set_stamp(order.bytes, order.base + i);
      end_.post_write(order.bytes, TransferClass::kLatency);
    }
    end_.until([&] { return end_.in_flight() == 0; });
  }

  void socket_receive(size_t bytes) {
    if (::recv(socket_, socket_bytes_.data(), bytes, 0) < 0) throw std::runtime_error("recv");
  }

  End& end_;
  int socket_;
  bool busy_ = false;
  std::vector<std::byte> socket_bytes_ = std::vector<std::byte>(kEchoBytesMax);
};

}  // namespace

int run_transfer_partner(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr,
                 "genie-bench: transfer-partner TRANSPORT ADDRESS SOCKET CORE is for genie-bench transfer only\n");
    return 2;
  }
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    take_core(std::strtoul(argv[3], nullptr, 10));
    End end(argv[0]);
    end.connect(argv[1]);
    Partner(end, std::atoi(argv[2])).run();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "genie-bench transfer-partner: %s\n", error.what());
    return 1;
  }
}

}  // namespace genie::bench
