// The fake network under faults: what must hold whatever the seed decides, and that the seed decides everything.
#include "datapath/fake/fake_network.h"

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <random>
#include <sstream>
#include <vector>

namespace genie::datapath {
namespace {

Buffer message_of(std::vector<std::byte>& bytes) { return Buffer::borrow(bytes); }

struct Outcome {
  std::string trace;  // everything that was reported, in order
  uint64_t posted = 0;
  std::map<Errc, uint64_t> results;
  uint64_t arrived = 0;
  uint64_t ends = 0;
  bool in_order = true;
};

constexpr uint32_t kPosts = 300;

// Two transports; the client posts a random load, both are polled until nothing moves any more.
Outcome play(const FaultPolicy& faults) {
  FakeNetwork network({.faults = faults});
  auto listener = network.make_transport();
  auto client = network.make_transport();
  EXPECT_TRUE(listener->listen("fake:node").ok());
  const EndpointId end = *client->connect("fake:node", {}, network.after_ms(1'000));
  std::mt19937 random(static_cast<uint32_t>(faults.seed));
  std::vector<std::byte> bytes(1000);
  std::map<uint64_t, int> completions;
  std::array<int64_t, 3> last_arrival = {-1, -1, -1};
  Outcome run;
  std::ostringstream trace;
  const auto collect = [&](Transport& side, char name) {
    std::array<Completion, 7> out;
    const size_t count = side.poll(out);
    for (size_t i = 0; i < count; ++i) {
      const Completion& completion = out[i];
      trace << network.now_ns() << name << static_cast<int>(completion.opcode) << errc_name(completion.result)
            << completion.immediate << ';';
      if (completion.opcode == Opcode::kSend) {
        ++completions[completion.user_data];
        ++run.results[completion.result];
      } else if (completion.opcode == Opcode::kReceive) {
        ++run.arrived;
        int64_t& last = last_arrival[completion.immediate % 3];
        run.in_order = run.in_order && completion.immediate > last;
        last = completion.immediate;
      } else if (completion.opcode == Opcode::kDisconnected) {
        ++run.ends;
      }
    }
    return count != 0;
  };
  for (uint32_t i = 0; i < kPosts; ++i) {
    Buffer message = message_of(bytes);
    const PostOptions options{.transfer_class = static_cast<TransferClass>(i % 3),
                              .deadline = network.after_ms(100 + random() % 50),
                              .user_data = i + 1};
    if (client->send(end, message, i, options).ok()) ++run.posted;
    if (random() % 3 == 0) collect(*listener, 'l');
    if (random() % 3 == 0) collect(*client, 'c');
    if (random() % 3 == 0) network.advance();
  }
  for (bool moving = true; moving;) {
    moving = collect(*listener, 'l') | collect(*client, 'c');
    moving = network.advance() || moving;
  }
  EXPECT_EQ(completions.size(), run.posted) << "seed " << faults.seed;
  for (const auto& [id, count] : completions) EXPECT_EQ(count, 1) << "post " << id << ", seed " << faults.seed;
  run.trace = trace.str();
  return run;
}

TEST(FakeNetwork, WithoutFaultsEverythingArrives) {
  const Outcome run = play({.seed = 3});
  EXPECT_EQ(run.posted, kPosts);
  EXPECT_EQ(run.arrived, kPosts);
  EXPECT_EQ(run.results.at(Errc::kOk), kPosts);
  EXPECT_EQ(run.ends, 0U);
}

TEST(FakeNetwork, TheSeedDecidesEverything) {
  const FaultPolicy faults{.seed = 11, .delay_ns_min = 10, .delay_ns_max = 900'000, .drop = 0.002, .reorder = 0.2};
  EXPECT_EQ(play(faults).trace, play(faults).trace);
  FaultPolicy other = faults;
  other.seed = 12;
  EXPECT_NE(play(faults).trace, play(other).trace);
}

TEST(FakeNetwork, EveryPostEndsOnceAndAClassStaysInOrderWhateverGoesWrong) {
  bool saw_timeout = false;
  bool saw_break = false;
  bool saw_success = false;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    const Outcome run = play({.seed = seed,
                              .delay_ns_min = 0,
                              .delay_ns_max = 300'000,
                              .drop = seed % 2 == 0 ? 0.005 : 0,
                              .reorder = 0.1,
                              .disconnect = seed % 3 == 0 ? 0.005 : 0});
    EXPECT_TRUE(run.in_order) << "seed " << seed;
    EXPECT_TRUE(run.ends == 0 || run.ends == 2) << "both sides see the end, once; seed " << seed;
    saw_timeout = saw_timeout || run.results.contains(Errc::kTimedOut);
    saw_break = saw_break || run.results.contains(Errc::kDisconnected);
    saw_success = saw_success || run.ends == 0;
  }
  EXPECT_TRUE(saw_timeout && saw_break && saw_success) << "the seeds reached every kind of end";
}

TEST(FakeNetwork, ALostOperationEndsByItsDeadline) {
  FakeNetwork network({.faults = {.drop = 1}});
  auto listener = network.make_transport();
  auto client = network.make_transport();
  ASSERT_TRUE(listener->listen("fake:node").ok());
  const EndpointId end = *client->connect("fake:node", {}, network.after_ms(1'000));
  std::vector<std::byte> bytes(10);
  Buffer message = message_of(bytes);
  ASSERT_TRUE(client->send(end, message, 0, {.deadline = network.after_ms(5)}).ok());
  std::array<Completion, 4> out;
  EXPECT_EQ(client->poll(out), 0U);
  EXPECT_TRUE(network.advance());
  EXPECT_EQ(network.now_ns(), 5'000'000U);
  ASSERT_EQ(client->poll(out), 2U);
  EXPECT_EQ(out[0].opcode, Opcode::kSend);
  EXPECT_EQ(out[0].result, Errc::kTimedOut);
  EXPECT_EQ(out[1].opcode, Opcode::kDisconnected);
}

TEST(FakeNetwork, AWaitPassesVirtualTime) {
  FakeNetwork network({.faults = {.delay_ns_min = 7'000, .delay_ns_max = 7'000}});
  auto listener = network.make_transport();
  auto client = network.make_transport();
  ASSERT_TRUE(listener->listen("fake:node").ok());
  const EndpointId end = *client->connect("fake:node", {}, network.after_ms(1'000));
  std::array<Completion, 4> out;
  ASSERT_EQ(listener->poll(out), 1U);
  std::vector<std::byte> bytes;
  Buffer message = message_of(bytes);
  ASSERT_TRUE(client->send(end, message, 0, {.deadline = network.after_ms(5)}).ok());
  listener->wait(1'000'000'000);
  EXPECT_EQ(network.now_ns(), 7'000U);
  EXPECT_EQ(listener->poll(out), 1U);
  client->poll(out);
  client->wait(1'000);
  EXPECT_EQ(network.now_ns(), 8'000U);
  client->wake();
  client->wait(1'000);
  EXPECT_EQ(network.now_ns(), 8'000U) << "wake() ends a wait";
}

}  // namespace
}  // namespace genie::datapath
