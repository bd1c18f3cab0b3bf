// A wire with faults, for tests: forwards Ethernet frames between two interfaces of its network namespace, and loses, delays,
// reorders and duplicates some of them.
//
//   relay --left IF --right IF [--loss P] [--delay-us N] [--jitter-us N] [--reorder P] [--duplicate P] [--seed N]
//
// What happens to the nth IPv4 packet of a direction follows from the seed, which the first line of the output names; other
// frames, with which machines find each other, pass at once and uncounted. A line on stdin is a command, answered by a line
// with the counters: "cut" (from now on nothing passes), "heal", "counters". It ends with its stdin.
// The interfaces must not leave work to others that a wire cannot do: checksums and segmentation offloads are off at both ends.
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "datapath/base/clock.h"
#include "datapath/base/file_descriptor.h"
#include "tests/network/faults.h"

namespace {

using genie::now_ns;
using genie::datapath::FileDescriptor;
using genie::test::Faults;
using genie::test::WireCounters;

constexpr size_t kFrameBytesMax = size_t{64} << 10;
constexpr size_t kHeldMax = 20'000;  // frames in flight in one direction; more are lost, as in any queue
constexpr int kSocketBytes = 32 << 20;
constexpr uint64_t kReorderNs = 2'000'000;  // for so long a frame is held back for others to overtake it

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what + ": " + std::strerror(errno)); }

FileDescriptor open_interface(const std::string& name) {
  FileDescriptor fd(::socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) fail("no packet socket (it wants CAP_NET_RAW)");
  const int index = static_cast<int>(::if_nametoindex(name.c_str()));
  if (index == 0) fail("no interface '" + name + "'");
  const int on = 1;
  // What this socket sends is not to come back to it as something received.
  if (::setsockopt(fd.get(), SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on)) != 0) fail("PACKET_IGNORE_OUTGOING");
  for (const int buffer : {SO_RCVBUFFORCE, SO_SNDBUFFORCE}) {
    const int plain = buffer == SO_RCVBUFFORCE ? SO_RCVBUF : SO_SNDBUF;
    if (::setsockopt(fd.get(), SOL_SOCKET, buffer, &kSocketBytes, sizeof(kSocketBytes)) != 0) {
      ::setsockopt(fd.get(), SOL_SOCKET, plain, &kSocketBytes, sizeof(kSocketBytes));
    }
  }
  packet_mreq promiscuous{};
  promiscuous.mr_ifindex = index;
  promiscuous.mr_type = PACKET_MR_PROMISC;
  if (::setsockopt(fd.get(), SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous, sizeof(promiscuous)) != 0) {
    fail("'" + name + "' cannot be promiscuous");
  }
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = index;
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) fail("bind to " + name);
  return fd;
}

// Frames from one interface to the other.
class Direction {
 public:
  Direction(int in, int out, const Faults& faults, uint64_t seed, WireCounters& counters)
      : in_(in), out_(out), faults_(faults), random_(seed), counters_(counters) {}

  int in() const { return in_; }
  uint64_t next_due_ns() const { return held_.empty() ? UINT64_MAX : held_.front().due_ns; }

  void receive(bool cut) {
    constexpr int kFramesAtOnce = 64;
    for (int i = 0; i < kFramesAtOnce; ++i) {
      const ssize_t got = ::recv(in_, buffer_.data(), buffer_.size(), MSG_TRUNC);
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
      if (got < 0 && errno == ENETDOWN) continue;  // said once, for an interface that went down
      if (got < 0) fail("recv");
      if (static_cast<size_t>(got) > buffer_.size()) {
        throw std::runtime_error("a frame of " + std::to_string(got) + " bytes: segmentation offload must be off");
      }
      const std::span<const std::byte> frame{buffer_.data(), static_cast<size_t>(got)};
      if (cut) {
        ++counters_.cut;
      } else if (is_ipv4(frame)) {
        judge(frame);
      } else {
        (void)!::send(out_, frame.data(), frame.size(), 0);
      }
    }
  }

  void release(uint64_t now) {
    while (!held_.empty() && held_.front().due_ns <= now) {
      std::ranges::pop_heap(held_, later);
      const Held frame = std::move(held_.back());
      held_.pop_back();
      if (::send(out_, frame.bytes.data(), frame.bytes.size(), 0) < 0) {
        ++counters_.overflowed;
        continue;
      }
      ++counters_.forwarded;
      if (frame.sequence < newest_) ++counters_.reordered;
      newest_ = std::max(newest_, frame.sequence);
    }
  }

  void drop_held() {
    counters_.cut += held_.size();
    held_.clear();
  }

 private:
  struct Held {
    uint64_t due_ns;
    uint64_t sequence;
    std::vector<std::byte> bytes;
  };
  static bool later(const Held& a, const Held& b) {
    return a.due_ns != b.due_ns ? a.due_ns > b.due_ns : a.sequence > b.sequence;
  }

  static bool is_ipv4(std::span<const std::byte> frame) {
    ethhdr header;
    if (frame.size() < sizeof(header)) return false;
    std::memcpy(&header, frame.data(), sizeof(header));
    return header.h_proto == htons(ETH_P_IP);
  }

  void judge(std::span<const std::byte> bytes) {
    // Always as many numbers for a frame, so that one fault does not move the others.
    const double loss = draw(), jitter = draw(), reorder = draw(), duplicate = draw();
    const uint64_t sequence = ++received_;
    if (loss < faults_.loss) {
      ++counters_.lost;
      return;
    }
    const auto jitter_ns = static_cast<uint64_t>(jitter * static_cast<double>(faults_.jitter_us * 1000));
    // Jitter alone keeps the order, so that the share of frames out of order is the one that was asked for.
    uint64_t due = std::max(now_ns() + faults_.delay_us * 1000 + jitter_ns, last_due_ns_);
    if (reorder < faults_.reorder) {
      due += kReorderNs;
    } else {
      last_due_ns_ = due;
    }
    hold(due, sequence, bytes);
    if (duplicate < faults_.duplicate && hold(due, sequence, bytes)) ++counters_.duplicated;
  }

  bool hold(uint64_t due_ns, uint64_t sequence, std::span<const std::byte> bytes) {
    if (held_.size() == kHeldMax) {
      ++counters_.overflowed;
      return false;
    }
    held_.push_back({due_ns, sequence, {bytes.begin(), bytes.end()}});
    std::ranges::push_heap(held_, later);
    return true;
  }

  double draw() { return std::uniform_real_distribution<double>(0, 1)(random_); }

  const int in_;
  const int out_;
  const Faults faults_;
  std::mt19937_64 random_;
  WireCounters& counters_;
  std::vector<Held> held_;  // a heap, the earliest first
  uint64_t received_ = 0;
  uint64_t newest_ = 0;
  uint64_t last_due_ns_ = 0;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(kFrameBytesMax);
};

class Relay {
 public:
  Relay(const std::string& left, const std::string& right, const Faults& faults, uint64_t seed)
      : left_(open_interface(left)),
        right_(open_interface(right)),
        directions_{Direction(left_.get(), right_.get(), faults, seed, counters_),
                    Direction(right_.get(), left_.get(), faults, seed + 1, counters_)} {}

  // Until stdin ends.
  void run() {
    for (bool going = true; going;) {
      std::array<pollfd, 3> watched{
          {{STDIN_FILENO, POLLIN, 0}, {directions_[0].in(), POLLIN, 0}, {directions_[1].in(), POLLIN, 0}}};
      sleep_on(watched);
      for (size_t i = 0; i < directions_.size(); ++i) {
        if (watched[i + 1].revents != 0) directions_[i].receive(cut_);
        directions_[i].release(now_ns());
      }
      if (watched[0].revents != 0) going = obey();
    }
    say_counters();
  }

 private:
  void sleep_on(std::span<pollfd> watched) const {
    const uint64_t due = std::min(directions_[0].next_due_ns(), directions_[1].next_due_ns());
    const uint64_t now = now_ns();
    const uint64_t left = due > now ? due - now : 0;
    const timespec timeout{static_cast<time_t>(left / 1'000'000'000), static_cast<long>(left % 1'000'000'000)};
    if (::ppoll(watched.data(), watched.size(), due == UINT64_MAX ? nullptr : &timeout, nullptr) < 0 &&
        errno != EINTR) {
      fail("poll");
    }
  }

  bool obey() {
    std::array<char, 256> text;
    const ssize_t got = ::read(STDIN_FILENO, text.data(), text.size());
    if (got <= 0) return false;
    typed_.append(text.data(), static_cast<size_t>(got));
    for (size_t end; (end = typed_.find('\n')) != std::string::npos; typed_.erase(0, end + 1)) {
      const std::string command = typed_.substr(0, end);
      if (command == "cut" || command == "heal") {
        cut_ = command == "cut";
        for (Direction& direction : directions_) direction.drop_held();
      } else if (command != "counters") {
        throw std::runtime_error("unknown command '" + command + "'; known: cut, heal, counters");
      }
      say_counters();
    }
    return true;
  }

  void say_counters() const {
    std::printf("forwarded=%lu lost=%lu reordered=%lu duplicated=%lu cut=%lu overflowed=%lu\n", counters_.forwarded,
                counters_.lost, counters_.reordered, counters_.duplicated, counters_.cut, counters_.overflowed);
    std::fflush(stdout);
  }

  WireCounters counters_;
  const FileDescriptor left_;
  const FileDescriptor right_;
  std::array<Direction, 2> directions_;
  bool cut_ = false;
  std::string typed_;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A wire with faults between two network interfaces.");
  std::string left, right;
  Faults faults;
  uint64_t seed = std::random_device{}();
  app.add_option("--left", left, "Interface")->required();
  app.add_option("--right", right, "Interface")->required();
  app.add_option("--loss", faults.loss, "Share of frames that are lost")->check(CLI::Range(0.0, 1.0));
  app.add_option("--delay-us", faults.delay_us, "Each frame takes so long");
  app.add_option("--jitter-us", faults.jitter_us, "and up to so much longer");
  app.add_option("--reorder", faults.reorder, "Share that is held back 2 ms longer")->check(CLI::Range(0.0, 1.0));
  app.add_option("--duplicate", faults.duplicate, "Share that comes twice")->check(CLI::Range(0.0, 1.0));
  app.add_option("--seed", seed, "Of the faults");
  CLI11_PARSE(app, argc, argv);
  ::prctl(PR_SET_TIMERSLACK, 1000UL);
  try {
    Relay relay(left, right, faults, seed);
    std::printf("seed=%lu\n", seed);
    std::fflush(stdout);
    relay.run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "relay: %s\n", error.what());
    return 1;
  }
  return 0;
}
