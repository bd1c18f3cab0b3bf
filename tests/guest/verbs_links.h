// Two verbs fabrics of one process, joined over the devices of a guest, for tests.
//
// Thread-safety: one thread. Ownership: the fixture owns both ends and waits until they are closed.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "datapath/base/clock.h"
#include "datapath/verbs/verbs_fabric.h"

namespace genie::datapath {

using net::Descriptor;
using Op = net::Descriptor::Op;

inline constexpr auto kLatency = TransferClass::kLatency;
inline constexpr auto kBulk = TransferClass::kBulk;

inline std::byte pattern(size_t seed, size_t i) {
  return static_cast<std::byte>((seed * 167 + i * 31 + (i >> 8)) & 0xff);
}
inline void fill(std::byte* data, size_t size, size_t seed) {
  for (size_t i = 0; i < size; ++i) data[i] = pattern(seed, i);
}
inline bool holds(const std::byte* data, size_t size, size_t seed) {
  for (size_t i = 0; i < size; ++i) {
    if (data[i] != pattern(seed, i)) return false;
  }
  return true;
}

// One side: a fabric, its link, and what it was told.
struct Side final : net::FabricSink {
  std::unique_ptr<net::Fabric> fabric;
  std::unique_ptr<net::FabricLink> link;
  std::deque<std::pair<uint64_t, Errc>> done;
  std::deque<std::string> messages;
  Status failure;
  bool closed = false;

  void on_done(uint64_t cookie, Errc result) override { done.emplace_back(cookie, result); }
  void on_message(net::FabricLink&, size_t, std::span<const std::byte> message) override {
    messages.emplace_back(reinterpret_cast<const char*>(message.data()), message.size());
  }
  void on_failed(net::FabricLink& failed, const Status& why) override {
    EXPECT_TRUE(failure.ok()) << "told twice";
    failure = why;
    fabric->close(failed, false);
  }
  void on_closed(net::FabricLink&) override {
    EXPECT_FALSE(closed) << "told twice";
    closed = true;
  }

  bool send(TransferClass lane, const std::string& text) {
    const std::span<std::byte> place = fabric->message_place(*link, lane);
    if (place.size() < text.size()) return false;
    std::memcpy(place.data(), text.data(), text.size());
    fabric->send(*link, lane, text.size());
    return true;
  }
};

class Guest {
 public:
  static void run(const std::string& command) {
    ASSERT_EQ(std::system(command.c_str()), 0) << command;  // NOLINT(cert-env33-c): the guest is ours
  }
  static void port(int number, bool up) {
    const std::string card = "eth" + std::to_string(number);
    run("ip link set " + card + (up ? " up" : " down"));
  }
};

class VerbsFabricTest : public testing::Test {
 protected:
  void start(const std::string& devices) {
    VerbsOptions options;
    options.devices = devices;
    for (Side* side : {&a_, &b_}) {
      Result<std::unique_ptr<net::Fabric>> made = make_verbs_fabric(options);
      ASSERT_TRUE(made.ok()) << made.status().to_string();
      side->fabric = std::move(*made);
    }
    ASSERT_NO_FATAL_FAILURE(join());
  }

  void join() {
    std::map<Side*, std::vector<std::byte>> addresses;
    for (Side* side : {&a_, &b_}) {
      Result<std::unique_ptr<net::FabricLink>> link = side->fabric->open_link("10.77.0.1");
      ASSERT_TRUE(link.ok()) << link.status().to_string();
      side->link = std::move(*link);
      Result<std::vector<std::byte>> address = side->fabric->address(*side->link);
      ASSERT_TRUE(address.ok());
      addresses[side] = std::move(*address);
    }
    for (Side* side : {&a_, &b_}) {
      const Status connected = side->fabric->connect(*side->link, addresses[side == &a_ ? &b_ : &a_]);
      ASSERT_TRUE(connected.ok()) << connected.to_string();
    }
  }

  void end() {
    for (Side* side : {&a_, &b_}) {
      if (side->link == nullptr) continue;
      side->fabric->close(*side->link, false);
      ASSERT_TRUE(until([&] { return side->closed; }));
      side->link.reset();
      side->closed = false;
    }
  }

  void TearDown() override { end(); }

  template <typename Done>
  bool until(Done&& done) {
    const Deadline deadline = Deadline::after_ms(60'000);
    while (!done()) {
      a_.fabric->poll(a_);
      b_.fabric->poll(b_);
      if (deadline.expired()) return false;
    }
    return true;
  }

  // Memory of b, and a's handle of it.
  struct Shared {
    std::unique_ptr<net::FabricMemory> memory;
    std::unique_ptr<net::FabricRemote> remote;
  };
  Shared share(size_t size) {
    Shared shared;
    Result<std::unique_ptr<net::FabricMemory>> memory = b_.fabric->allocate(size, true);
    EXPECT_TRUE(memory.ok());
    shared.memory = std::move(*memory);
    const Result<std::vector<std::byte>> key = b_.fabric->export_memory(*b_.link, *shared.memory);
    EXPECT_TRUE(key.ok()) << key.status().to_string();
    const auto address = reinterpret_cast<uint64_t>(shared.memory->data);
    Result<std::unique_ptr<net::FabricRemote>> remote = a_.fabric->import_memory(*a_.link, *key, address, size);
    EXPECT_TRUE(remote.ok());
    shared.remote = std::move(*remote);
    return shared;
  }
  static Descriptor transfer(Op op, std::byte* local, size_t size, const net::FabricMemory* memory,
                             const Shared& shared, size_t offset, uint64_t cookie) {
    return {.op = op,
            .local = local,
            .size = size,
            .memory = memory,
            .remote = shared.remote.get(),
            .remote_address = reinterpret_cast<uint64_t>(shared.memory->data) + offset,
            .cookie = cookie};
  }
  // Posts all of them, however often the queue is full.
  void post(TransferClass lane, std::span<const Descriptor> batch) {
    EXPECT_TRUE(until([&] {
      batch = batch.subspan(a_.fabric->post(*a_.link, lane, batch));
      return batch.empty();
    }));
  }
  void expect_done(uint64_t first, uint64_t last) {
    for (uint64_t cookie = first; cookie <= last; ++cookie) {
      ASSERT_TRUE(until([&] { return !a_.done.empty(); })) << cookie;
      EXPECT_EQ(a_.done.front().first, cookie) << "in the order of posting";
      ASSERT_EQ(a_.done.front().second, Errc::kOk) << cookie << ": " << a_.failure.to_string();
      a_.done.pop_front();
    }
    EXPECT_TRUE(a_.done.empty());
  }

  void say(size_t number) {
    for (Side* side : {&a_, &b_}) {
      EXPECT_TRUE(until([&] { return side->send(kLatency, "message " + std::to_string(number)); }));
    }
  }

  // Bulk writes, each with its own bytes, while `disturb` changes the network halfway; everything must arrive, and so must
  // messages in both directions.
  void transfer_through(const std::function<void()>& disturb) {
    constexpr size_t kChunk = size_t{256} << 10;
    constexpr size_t kChunks = 64;
    const Shared shared = share(kChunk * kChunks);
    Result<std::unique_ptr<net::FabricMemory>> local = a_.fabric->allocate(kChunk * kChunks, true);
    ASSERT_TRUE(local.ok());
    fill((*local)->data, kChunk * kChunks, 5);
    std::vector<Descriptor> batch;
    for (size_t i = 0; i < kChunks; ++i) {
      batch.push_back(transfer(Op::kWrite, (*local)->data + i * kChunk, kChunk, local->get(), shared, i * kChunk, i));
    }
    size_t posted = a_.fabric->post(*a_.link, kBulk, std::span(batch).first(kChunks / 2));
    constexpr size_t kMessages = 60;
    for (size_t i = 0; i < kMessages / 2; ++i) {
      say(i);
    }
    disturb();
    for (size_t i = kMessages / 2; i < kMessages; ++i) {
      say(i);
    }
    post(kBulk, std::span(batch).subspan(posted));
    ASSERT_NO_FATAL_FAILURE(expect_done(0, kChunks - 1));
    EXPECT_TRUE(holds(shared.memory->data, kChunk * kChunks, 5));
    for (Side* side : {&a_, &b_}) {
      EXPECT_TRUE(until([&] { return side->messages.size() >= kMessages; }));
      ASSERT_EQ(side->messages.size(), kMessages);
      for (size_t i = 0; i < kMessages; ++i) EXPECT_EQ(side->messages[i], "message " + std::to_string(i));
      EXPECT_TRUE(side->failure.ok()) << side->failure.to_string();
      side->messages.clear();
    }
  }

  Side a_;
  Side b_;
};

}  // namespace genie::datapath
