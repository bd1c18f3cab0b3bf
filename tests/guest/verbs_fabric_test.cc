// The verbs fabric on real devices (Soft-RoCE in a guest): two fabrics of one process, joined over rxe0 and rxe1. Run by
// tests/guest/meson.build; it changes the guest's network.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/guest/verbs_links.h"

namespace genie::datapath {
namespace {

TEST_F(VerbsFabricTest, MessagesOfEverySizeArriveInOrderBothWays) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0"));
  const size_t largest = a_.fabric->info().max_message_bytes;
  const std::vector<size_t> sizes = {0, 1, 63, 220, 221, 4096, largest};
  for (size_t i = 0; i < 300; ++i) {
    const std::string text(sizes[i % sizes.size()], static_cast<char>('a' + i % 26));
    Side& sender = i % 3 == 0 ? b_ : a_;
    Side& receiver = i % 3 == 0 ? a_ : b_;
    ASSERT_TRUE(until([&] { return sender.send(i % 2 == 0 ? kLatency : kBulk, text); }));
    ASSERT_TRUE(until([&] { return !receiver.messages.empty(); }));
    EXPECT_EQ(receiver.messages.front(), text);
    receiver.messages.pop_front();
  }
}

TEST_F(VerbsFabricTest, AWindowOfMessagesNeedsNobodyToPoll) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0"));
  for (uint32_t i = 0; i < net::kMessageWindow + net::kReservedMessages; ++i) {
    ASSERT_TRUE(a_.send(kLatency, std::to_string(i))) << i;
  }
  EXPECT_TRUE(a_.fabric->message_place(*a_.link, kLatency).empty()) << "no place without an acknowledgement";
  ASSERT_TRUE(until([&] { return b_.messages.size() == net::kMessageWindow + net::kReservedMessages; }));
  for (uint32_t i = 0; i < b_.messages.size(); ++i) EXPECT_EQ(b_.messages[i], std::to_string(i));
  EXPECT_TRUE(until([&] { return !a_.fabric->message_place(*a_.link, kLatency).empty(); }));
}

TEST_F(VerbsFabricTest, RegisteredAndOtherMemoryIsWrittenAndRead) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0"));
  const Shared shared = share(size_t{1} << 20);
  Result<std::unique_ptr<net::FabricMemory>> local = a_.fabric->allocate(size_t{1} << 20, false);
  ASSERT_TRUE(local.ok());
  std::vector<std::byte> unregistered(size_t{256} << 10);
  uint64_t cookie = 1;
  for (const size_t size : {size_t{1}, size_t{220}, size_t{221}, size_t{5000}, size_t{256} << 10}) {
    for (const bool registered : {true, false}) {
      std::byte* data = registered ? (*local)->data : unregistered.data();
      const net::FabricMemory* memory = registered ? local->get() : nullptr;
      fill(data, size, cookie);
      post(kLatency, std::vector{transfer(Op::kWrite, data, size, memory, shared, 100, cookie)});
      ASSERT_NO_FATAL_FAILURE(expect_done(cookie, cookie));
      EXPECT_TRUE(holds(shared.memory->data + 100, size, cookie));
      std::memset(data, 0, size);
      post(kBulk, std::vector{transfer(Op::kRead, data, size, memory, shared, 100, cookie)});
      ASSERT_NO_FATAL_FAILURE(expect_done(cookie, cookie));
      EXPECT_TRUE(holds(data, size, cookie));
      ++cookie;
    }
  }
}

TEST_F(VerbsFabricTest, ManyUnregisteredTransfersTakeTurns) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0"));
  constexpr size_t kSize = 30'000;
  const Shared shared = share(100 * kSize);
  std::vector<std::byte> bytes(100 * kSize);
  fill(bytes.data(), bytes.size(), 3);
  std::vector<Descriptor> batch;
  for (size_t i = 0; i < 100; ++i) {
    batch.push_back(transfer(Op::kWrite, bytes.data() + i * kSize, kSize, nullptr, shared, i * kSize, i));
  }
  post(kBulk, batch);
  ASSERT_NO_FATAL_FAILURE(expect_done(0, 99));
  EXPECT_TRUE(holds(shared.memory->data, bytes.size(), 3));
}

TEST_F(VerbsFabricTest, AnUnsignaledTransferEndsWithTheNextSignaledOne) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0"));
  constexpr size_t kCount = 56;
  const Shared shared = share(kCount * 512);
  Result<std::unique_ptr<net::FabricMemory>> local = a_.fabric->allocate(kCount * 512, true);
  ASSERT_TRUE(local.ok());
  fill((*local)->data, kCount * 512, 9);
  std::vector<Descriptor> batch;
  for (size_t i = 0; i < kCount; ++i) {
    batch.push_back(transfer(Op::kWrite, (*local)->data + i * 512, 512, local->get(), shared, i * 512, i));
    batch.back().signaled = i + 1 == kCount;
  }
  ASSERT_EQ(a_.fabric->post(*a_.link, kLatency, batch), kCount) << "one batch";
  ASSERT_NO_FATAL_FAILURE(expect_done(kCount - 1, kCount - 1));
  EXPECT_TRUE(holds(shared.memory->data, kCount * 512, 9));
}

TEST_F(VerbsFabricTest, AMessageComesAfterTheWritesBeforeIt) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0"));
  ASSERT_TRUE(a_.link->ordered[static_cast<size_t>(kLatency)]);
  constexpr size_t kSize = 200'000;
  const Shared shared = share(kSize);
  Result<std::unique_ptr<net::FabricMemory>> local = a_.fabric->allocate(kSize, true);
  ASSERT_TRUE(local.ok());
  for (uint64_t round = 1; round <= 20; ++round) {
    fill((*local)->data, kSize, round);
    post(kLatency, std::vector{transfer(Op::kWrite, (*local)->data, kSize, local->get(), shared, 0, round)});
    ASSERT_TRUE(until([&] { return a_.send(kLatency, "there"); }));
    ASSERT_TRUE(until([&] { return !b_.messages.empty(); }));
    ASSERT_TRUE(holds(shared.memory->data, kSize, round)) << round;
    b_.messages.clear();
    ASSERT_NO_FATAL_FAILURE(expect_done(round, round));
  }
}

TEST_F(VerbsFabricTest, AKeyIsGoodForItsLinkAlone) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0"));
  const Shared of_first = share(4096);
  std::unique_ptr<net::FabricLink> first_a = std::move(a_.link);
  std::unique_ptr<net::FabricLink> first_b = std::move(b_.link);
  ASSERT_NO_FATAL_FAILURE(join());
  std::byte bytes[64] = {};
  fill(bytes, sizeof(bytes), 1);
  // The second link names the first one's memory, by its true key and address.
  post(kLatency, std::vector{transfer(Op::kWrite, bytes, sizeof(bytes), nullptr, of_first, 0, 7)});
  ASSERT_TRUE(until([&] { return !a_.failure.ok() && a_.closed; }));
  EXPECT_EQ(a_.failure.code(), Errc::kPermission) << a_.failure.to_string();
  ASSERT_EQ(a_.done.size(), 1U);
  EXPECT_NE(a_.done.front().second, Errc::kOk);
  a_.done.clear();
  EXPECT_TRUE(
      std::all_of(of_first.memory->data, of_first.memory->data + 64, [](std::byte b) { return b == std::byte{0}; }));
  // The first link has noticed nothing.
  a_.link = std::move(first_a);
  a_.failure = Status();
  a_.closed = false;
  post(kLatency, std::vector{transfer(Op::kWrite, bytes, sizeof(bytes), nullptr, of_first, 0, 8)});
  ASSERT_NO_FATAL_FAILURE(expect_done(8, 8));
  EXPECT_TRUE(until([&] { return !b_.failure.ok() && b_.closed; })) << "the other end sees that its queue pair failed";
  b_.link = std::move(first_b);
  b_.closed = false;
}

TEST_F(VerbsFabricTest, AnOrderlyEndDeliversWhatWasSent) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0"));
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(a_.send(kLatency, std::to_string(i)));
  a_.fabric->close(*a_.link, true);
  ASSERT_TRUE(until([&] { return a_.closed && b_.messages.size() == 40; }));
  EXPECT_FALSE(a_.send(kLatency, "too late"));
}

TEST_F(VerbsFabricTest, ACloseEndsEverythingOnce) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0"));
  const Shared shared = share(size_t{4} << 20);
  std::vector<std::byte> bytes(size_t{4} << 20);
  Result<std::unique_ptr<net::FabricMemory>> local = a_.fabric->register_memory(bytes, MemoryKind::kHost, false);
  ASSERT_TRUE(local.ok());
  std::vector<Descriptor> batch;
  for (size_t i = 0; i < 16; ++i) {
    const size_t at = i * (size_t{256} << 10);
    batch.push_back(transfer(Op::kWrite, bytes.data() + at, size_t{256} << 10, local->get(), shared, at, i));
  }
  const size_t posted = a_.fabric->post(*a_.link, kBulk, batch);
  a_.fabric->close(*a_.link, false);
  EXPECT_EQ(a_.fabric->post(*a_.link, kBulk, batch), 0U);
  ASSERT_TRUE(until([&] { return a_.closed; }));
  EXPECT_EQ(a_.done.size(), posted);
}

TEST_F(VerbsFabricTest, TheDescriptorWakesASleeper) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0"));
  ASSERT_TRUE(until([&] { return b_.fabric->arm(); }));
  pollfd entry{b_.fabric->event_fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 0), 0) << "nothing came yet";
  ASSERT_TRUE(a_.send(kLatency, "wake up"));
  EXPECT_EQ(::poll(&entry, 1, 20'000), 1);
  EXPECT_TRUE(until([&] { return !b_.messages.empty(); }));
  ASSERT_TRUE(a_.send(kLatency, "before it slept"));
  ASSERT_TRUE(until([&] { return !b_.fabric->arm(); })) << "what is there already is not slept over";
  EXPECT_TRUE(until([&] { return b_.messages.size() == 2; }));
}

TEST_F(VerbsFabricTest, NonsenseFromAPeerIsRefused) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0"));
  Result<std::unique_ptr<net::FabricLink>> link = a_.fabric->open_link("10.77.0.1");
  ASSERT_TRUE(link.ok());
  Result<std::vector<std::byte>> address = a_.fabric->address(**link);
  ASSERT_TRUE(address.ok());
  EXPECT_EQ(a_.fabric->connect(**link, *address).code(), Errc::kProtocol) << "its own address";
  for (size_t size = 0; size < address->size(); ++size) {
    EXPECT_FALSE(a_.fabric->connect(**link, std::span(*address).first(size)).ok()) << size;
  }
  std::vector<std::byte> other = *address;
  other[4] ^= std::byte{1};
  EXPECT_EQ(a_.fabric->connect(**link, other).code(), Errc::kVersionMismatch);
  EXPECT_EQ(a_.fabric->import_memory(*a_.link, {}, 0, 4096).code(), Errc::kProtocol);
}

TEST_F(VerbsFabricTest, GpuMemoryThatIsNoneIsRefusedWithTheCure) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0"));
  std::byte* nowhere = reinterpret_cast<std::byte*>(uintptr_t{1} << 40);
  const Status refused = a_.fabric->register_memory({nowhere, 4096}, MemoryKind::kCuda, true).status();
  EXPECT_EQ(refused.code(), Errc::kUnsupported);
  EXPECT_NE(refused.text().find("nvidia-peermem"), std::string_view::npos) << refused.text();
}

TEST_F(VerbsFabricTest, BulkIsSpreadOverTwoRails) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0,rxe1"));
  EXPECT_FALSE(a_.link->ordered[static_cast<size_t>(kBulk)]);
  EXPECT_NE(a_.fabric->describe(*a_.link).find("rxe1"), std::string::npos) << a_.fabric->describe(*a_.link);
  ASSERT_NO_FATAL_FAILURE(transfer_through([] {}));
}

class FailingRail : public VerbsFabricTest {
 protected:
  // How many the fewer of the two sides would have.
  size_t rails_of_a_new_link() {
    size_t fewest = SIZE_MAX;
    for (Side* side : {&a_, &b_}) {
      Result<std::unique_ptr<net::FabricLink>> link = side->fabric->open_link("10.77.0.1");
      const std::string text = link.ok() ? side->fabric->describe(**link) : std::string();
      fewest = std::min(fewest, static_cast<size_t>(std::count(text.begin(), text.end(), 'x')));
    }
    return fewest;
  }

  void TearDown() override {
    VerbsFabricTest::TearDown();
    Guest::port(0, true);
    Guest::port(1, true);
  }
};

TEST_F(FailingRail, TheOthersTakeOverItsTransfers) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0,rxe1"));
  ASSERT_NO_FATAL_FAILURE(transfer_through([] { Guest::port(1, false); }));
  ASSERT_NO_FATAL_FAILURE(transfer_through([] {}));
}

TEST_F(FailingRail, TheOthersTakeOverItsMessages) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0,rxe1"));
  ASSERT_NO_FATAL_FAILURE(transfer_through([] { Guest::port(0, false); }));
  ASSERT_NO_FATAL_FAILURE(transfer_through([] {}));
}

TEST_F(FailingRail, NewLinksUseAPortThatCameBack) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0,rxe1"));
  Guest::port(1, false);
  ASSERT_NO_FATAL_FAILURE(end());
  EXPECT_TRUE(until([&] { return rails_of_a_new_link() == 1; })) << "a port that is down is left out";
  Guest::port(1, true);
  ASSERT_TRUE(until([&] { return rails_of_a_new_link() == 2; }));
  ASSERT_NO_FATAL_FAILURE(join());
  ASSERT_NO_FATAL_FAILURE(transfer_through([] {}));
}

TEST_F(FailingRail, TheLastOneFailsTheLink) {
  ASSERT_NO_FATAL_FAILURE(start("rxe0,rxe1"));
  ASSERT_NO_FATAL_FAILURE(transfer_through([] { Guest::port(0, false); }));
  Guest::port(1, false);
  EXPECT_TRUE(until([&] { return !a_.failure.ok() && a_.closed && !b_.failure.ok() && b_.closed; }));
  EXPECT_NE(a_.failure.text().find("rxe1"), std::string_view::npos) << a_.failure.to_string();
}

TEST(Devices, OneThatIsNotThereIsNamedWithThoseThatAre) {
  VerbsOptions options;
  options.devices = "mlx5_7";
  const Status refused = make_verbs_fabric(options).status();
  EXPECT_EQ(refused.code(), Errc::kConfig);
  EXPECT_NE(refused.text().find("rxe0, rxe1"), std::string_view::npos) << refused.text();
  options.devices = "rxe0:9";
  EXPECT_EQ(make_verbs_fabric(options).code(), Errc::kConfig);
  options.devices = "rxe0";
  options.gid_index = 77;
  EXPECT_EQ(make_verbs_fabric(options).code(), Errc::kConfig);
  options.gid_index = -1;
  options.mtu_bytes = 1500;
  EXPECT_EQ(make_verbs_fabric(options).code(), Errc::kConfig);
  options.mtu_bytes = 1024;
  EXPECT_TRUE(make_verbs_fabric(options).ok());
}

// What an ordinary user meets whose limit of locked memory is the old default.
int open_link_with_little_memlock() {
  const rlimit limit{65536, 65536};
  if (::setrlimit(RLIMIT_MEMLOCK, &limit) != 0 || ::setgid(65534) != 0 || ::setuid(65534) != 0) return 2;
  VerbsOptions options;
  options.devices = "rxe0";
  Result<std::unique_ptr<net::Fabric>> fabric = make_verbs_fabric(options);
  if (!fabric.ok()) return std::fprintf(stderr, "%s\n", fabric.status().to_string().c_str()), 3;
  const Status refused = (*fabric)->open_link("10.77.0.1").status();
  std::fprintf(stderr, "%s\n", refused.to_string().c_str());
  return refused.code() == Errc::kOutOfMemory && refused.text().find("ulimit -l") != std::string_view::npos ? 0 : 4;
}

TEST(Devices, TooLittleLockedMemoryIsToldWithTheCure) {
  Guest::run("chmod 666 /dev/infiniband/uverbs*");
  const pid_t child = ::fork();
  if (child == 0) ::_exit(open_link_with_little_memlock());
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace genie::datapath
