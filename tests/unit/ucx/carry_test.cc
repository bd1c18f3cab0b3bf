// Transfers over TCP as the fabric carries them: what the receiver refuses, and that nothing overtakes anything.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "datapath/ucx/ucx_fabric.h"

namespace genie::datapath {
namespace {

using net::Descriptor;
using net::FabricLink;
using net::FabricMemory;
using net::FabricRemote;
using Op = Descriptor::Op;

// One process's fabric and what it was told.
struct Side final : net::FabricSink {
  std::unique_ptr<net::Fabric> fabric;
  std::map<uint64_t, Errc> done;
  std::map<const FabricLink*, Errc> failed;
  std::map<const FabricLink*, int> closed;
  std::function<void(std::string_view)> on_text;

  void on_done(uint64_t cookie, Errc result) override { EXPECT_TRUE(done.emplace(cookie, result).second) << cookie; }
  void on_message(FabricLink&, size_t, std::span<const std::byte> bytes) override {
    if (on_text) on_text({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }
  void on_failed(FabricLink& link, const Status& why) override {
    failed.emplace(&link, why.code());
    fabric->close(link, false);
  }
  void on_closed(FabricLink& link) override { ++closed[&link]; }
};

// Both ends of a link; the first one writes.
struct Pair {
  std::unique_ptr<FabricLink> a;
  std::unique_ptr<FabricLink> b;
};

// b's memory, and a's handle of it.
struct Shared {
  std::unique_ptr<FabricMemory> memory;
  std::unique_ptr<FabricRemote> remote;
  uint64_t address() const { return reinterpret_cast<uint64_t>(memory->data); }
  bool all(int value) const {
    return std::all_of(memory->data, memory->data + memory->size,
                       [&](std::byte b) { return b == static_cast<std::byte>(value); });
  }
};

class Carry : public testing::Test {
 protected:
  void SetUp() override {
    if (!ucx_compiled_in()) GTEST_SKIP() << "this build has no UCX";
    for (Side* side : {&a_, &b_}) {
      UcxOptions options;
      options.tls = "tcp";
      Result<std::unique_ptr<net::Fabric>> made = make_ucx_fabric(options);
      ASSERT_TRUE(made.ok()) << made.status().to_string();
      side->fabric = std::move(*made);
    }
  }

  template <typename Done>
  bool until(Done&& done) {
    const Deadline deadline = Deadline::after_ms(20'000);
    while (!done()) {
      a_.fabric->poll(a_);
      b_.fabric->poll(b_);
      if (deadline.expired()) return false;
    }
    return true;
  }

  Pair join() {
    Pair pair;
    pair.a = std::move(*a_.fabric->open_link("127.0.0.1"));
    pair.b = std::move(*b_.fabric->open_link("127.0.0.1"));
    const std::vector<std::byte> of_a = *a_.fabric->address(*pair.a);
    const std::vector<std::byte> of_b = *b_.fabric->address(*pair.b);
    EXPECT_TRUE(a_.fabric->connect(*pair.a, of_b).ok());
    EXPECT_TRUE(b_.fabric->connect(*pair.b, of_a).ok());
    pair.a->owner = pair.b->owner = this;
    EXPECT_TRUE(pair.a->ordered[0]);
    return pair;
  }

  void end(Pair& pair) {
    a_.fabric->close(*pair.a, false);
    b_.fabric->close(*pair.b, false);
    EXPECT_TRUE(until([&] { return a_.closed[pair.a.get()] == 1 && b_.closed[pair.b.get()] == 1; }));
    pair = Pair();
  }

  Shared share(Pair& pair, size_t size) {
    Shared shared;
    shared.memory = std::move(*b_.fabric->allocate(size, true));
    import(pair, shared);
    return shared;
  }
  void import(Pair& pair, Shared& shared) {
    const std::vector<std::byte> key = *b_.fabric->export_memory(*pair.b, *shared.memory);
    shared.remote = std::move(*a_.fabric->import_memory(*pair.a, key, shared.address(), shared.memory->size));
  }

  void post(Pair& pair, const Descriptor& descriptor) {
    ASSERT_TRUE(until([&] { return a_.fabric->post(*pair.a, TransferClass::kLatency, {&descriptor, 1}) == 1; }));
  }

  Side a_;
  Side b_;
};

TEST_F(Carry, AForgedPlaceEndsItsLinkAndNothingElse) {
  Pair good = join();
  const Shared kept = share(good, 8192);
  uint64_t cookie = 0;
  for (const size_t size : {size_t{8}, size_t{6000}}) {  // a piece, and one that travels alone
    for (const Op op : {Op::kWrite, Op::kRead}) {
      for (const std::string what : {"beyond the end", "before the beginning", "another link's", "dropped"}) {
        SCOPED_TRACE(what + (op == Op::kWrite ? " written " : " read ") + std::to_string(size));
        Pair bad = join();
        std::vector<Shared> shared;
        if (what != "another link's") shared.push_back(share(bad, 8192));
        const Shared& region = what == "another link's" ? kept : shared.front();
        uint64_t address = region.address();
        if (what == "beyond the end") address += region.memory->size - size + 1;
        if (what == "before the beginning") address -= 1;
        if (what == "dropped") shared.front().memory.reset();
        std::vector<std::byte> local(size, std::byte{1});
        post(bad, {.op = op,
                   .local = local.data(),
                   .size = size,
                   .remote = region.remote.get(),
                   .remote_address = address,
                   .cookie = ++cookie});
        ASSERT_TRUE(until([&] { return b_.failed.contains(bad.b.get()); }));
        EXPECT_EQ(b_.failed[bad.b.get()], Errc::kProtocol);
        end(bad);
        EXPECT_NE(a_.done.at(cookie), Errc::kOk);
        EXPECT_TRUE(region.memory == nullptr || region.all(0));
        EXPECT_TRUE(std::ranges::all_of(local, [](std::byte b) { return b == std::byte{1}; }));
        a_.failed.clear();
        b_.failed.clear();
        a_.closed.clear();
        b_.closed.clear();
      }
    }
  }
  std::vector<std::byte> ones(8192, std::byte{1});
  post(good, {.op = Op::kWrite,
              .local = ones.data(),
              .size = ones.size(),
              .remote = kept.remote.get(),
              .remote_address = kept.address(),
              .cookie = 1'000});
  EXPECT_TRUE(until([&] { return a_.done.contains(1'000); }));
  EXPECT_EQ(a_.done[1'000], Errc::kOk);
  EXPECT_TRUE(kept.all(1));
  end(good);
}

TEST_F(Carry, AMessageComesAfterAllThatWasWrittenBeforeIt) {
  Pair pair = join();
  constexpr size_t kBytes = 300'000;
  const Shared shared = share(pair, kBytes);
  bool whole = false;
  int rounds = 0;
  b_.on_text = [&](std::string_view text) {
    EXPECT_EQ(text, "round " + std::to_string(rounds));
    ++rounds;
    whole = shared.all(rounds);
  };
  uint64_t cookie = 0;
  for (int round = 1; round <= 50; ++round) {
    const std::vector<std::byte> bytes(kBytes, static_cast<std::byte>(round));
    // Pieces and larger ones in turn, one right behind the other.
    for (size_t at = 0, size = 1; at < kBytes; at += size) {
      size = std::min(at % 3 == 0 ? 1 + at % 4000 : 5000 + at % 90'000, kBytes - at);
      post(pair, {.op = Op::kWrite,
                  .local = const_cast<std::byte*>(bytes.data()) + at,
                  .size = size,
                  .remote = shared.remote.get(),
                  .remote_address = shared.address() + at,
                  .cookie = ++cookie});
    }
    const std::string text = "round " + std::to_string(round - 1);
    std::span<std::byte> place;
    ASSERT_TRUE(until([&] { return !(place = a_.fabric->message_place(*pair.a, TransferClass::kLatency)).empty(); }));
    std::memcpy(place.data(), text.data(), text.size());
    a_.fabric->send(*pair.a, TransferClass::kLatency, text.size());
    ASSERT_TRUE(until([&] { return rounds == round; }));
    EXPECT_TRUE(whole) << "round " << round;
    ASSERT_TRUE(until([&] { return a_.done.size() == cookie; }));
  }
  for (const auto& [which, result] : a_.done) EXPECT_EQ(result, Errc::kOk) << which;
  end(pair);
}

// The owner takes memory back that the reader has asked for and does not fetch.
TEST_F(Carry, MemoryThatIsReadMayGo) {
  for (const bool registered : {false, true}) {
    Pair pair = join();
    constexpr size_t kBytes = size_t{512} << 10;
    std::vector<std::byte> somebodys(kBytes, std::byte{1});
    Shared shared;
    if (registered) {
      shared.memory = std::move(*b_.fabric->register_memory(somebodys, MemoryKind::kHost, true));
    } else {
      shared.memory = std::move(*b_.fabric->allocate(kBytes, true));
      std::memset(shared.memory->data, 1, kBytes);
    }
    import(pair, shared);
    a_.done.clear();
    std::vector<std::vector<std::byte>> local(16, std::vector<std::byte>(kBytes));
    for (uint64_t i = 0; i < local.size(); ++i) {
      post(pair, {.op = Op::kRead,
                  .local = local[i].data(),
                  .size = kBytes,
                  .remote = shared.remote.get(),
                  .remote_address = shared.address(),
                  .cookie = i});
    }
    // Only the owner moves: its answers do not fit the socket.
    for (int i = 0; i < 1000; ++i) b_.fabric->poll(b_);
    EXPECT_LT(a_.done.size(), local.size());
    shared.memory.reset();
    std::vector<std::byte>(kBytes, std::byte{2}).swap(somebodys);
    ASSERT_TRUE(until([&] { return a_.done.size() == local.size() || !b_.failed.empty(); }));
    for (const auto& [which, result] : a_.done) {
      if (result != Errc::kOk) continue;
      EXPECT_TRUE(std::ranges::all_of(local[which], [](std::byte b) { return b == std::byte{1}; })) << which;
    }
    end(pair);
    a_.failed.clear();
    b_.failed.clear();
  }
}

}  // namespace
}  // namespace genie::datapath
