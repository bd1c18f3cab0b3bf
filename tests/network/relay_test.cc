// The relay itself: what it says that it did is what arrives. In a process of its own, since the count has to be exact: other
// tests leave connections behind that still say something.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <optional>
#include <set>

#include "tests/eventually.h"
#include "tests/network/wire.h"

namespace genie::test {
namespace {

// From here to there.
class Datagrams {
 public:
  Datagrams() : here_(bound_to(kHere)) {
    const VisitThere there;
    there_ = bound_to(kThere);
  }

  void send(uint32_t number) {
    sockaddr_in to = address_of(kThere);
    ASSERT_EQ(::sendto(here_.get(), &number, sizeof(number), 0, reinterpret_cast<const sockaddr*>(&to), sizeof(to)),
              static_cast<ssize_t>(sizeof(number)));
  }
  // The next that arrives; nothing when none does for so long.
  std::optional<uint32_t> receive(int timeout_ms) {
    pollfd waiting{.fd = there_.get(), .events = POLLIN, .revents = 0};
    uint32_t number = 0;
    if (::poll(&waiting, 1, timeout_ms) <= 0) return std::nullopt;
    if (::recv(there_.get(), &number, sizeof(number), 0) != static_cast<ssize_t>(sizeof(number))) return std::nullopt;
    return number;
  }

 private:
  static sockaddr_in address_of(const char* host) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(7720);
    ::inet_pton(AF_INET, host, &address.sin_addr);
    return address;
  }
  static datapath::FileDescriptor bound_to(const char* host) {
    datapath::FileDescriptor fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const sockaddr_in address = address_of(host);
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }

  datapath::FileDescriptor here_;
  datapath::FileDescriptor there_;
};

TEST(Relay, DoesWhatItSays) {
  if (!why_no_networks().empty()) GTEST_SKIP() << why_no_networks();
  constexpr uint32_t kSent = 2'000;
  constexpr uint32_t kAtOnce = 20;
  Wire wire(Faults{.loss = 0.05, .delay_us = 100, .jitter_us = 100, .reorder = 0.05, .duplicate = 0.05});
  Datagrams datagrams;
  // The two find each other first.
  ASSERT_TRUE(eventually([&] {
    datagrams.send(0);
    return datagrams.receive(100).has_value();
  }));
  while (datagrams.receive(100).has_value()) {
  }
  const WireCounters before = wire.counters();
  std::set<uint32_t> seen;
  uint32_t received = 0, newest = 0, overtaken = 0;
  const auto take = [&](int timeout_ms) {
    const std::optional<uint32_t> number = datagrams.receive(timeout_ms);
    if (!number.has_value()) return false;
    ++received;
    seen.insert(*number);
    if (*number < newest) ++overtaken;
    newest = std::max(newest, *number);
    return true;
  };
  for (uint32_t number = 1; number <= kSent; ++number) {
    datagrams.send(number);
    if (number % kAtOnce == 0) {
      while (take(1)) {
      }
    }
  }
  WireCounters now;
  ASSERT_TRUE(eventually([&] {
    while (take(1)) {
    }
    now = wire.counters();
    return now.forwarded + now.lost - now.duplicated == before.forwarded + before.lost - before.duplicated + kSent &&
           received == now.forwarded - before.forwarded;
  })) << received
      << " arrived";
  EXPECT_EQ(seen.size(), kSent - (now.lost - before.lost));
  EXPECT_EQ(received - seen.size(), now.duplicated - before.duplicated);
  EXPECT_EQ(overtaken, now.reordered - before.reordered);
  EXPECT_EQ(now.overflowed, 0U);
  for (const uint64_t fault : {now.lost, now.reordered, now.duplicated}) EXPECT_GT(fault, 20U);
  wire.cut();
  datagrams.send(0);
  ASSERT_TRUE(eventually([&] { return wire.counters().cut >= 1; }));
  EXPECT_FALSE(datagrams.receive(0).has_value());
  wire.heal();
  ASSERT_TRUE(eventually([&] {
    datagrams.send(0);
    return datagrams.receive(100).has_value();
  }));
}

}  // namespace
}  // namespace genie::test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  (void)genie::test::make_networks();
  return RUN_ALL_TESTS();
}
