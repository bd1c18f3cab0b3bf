// Connections: beginning, end, limits, sleeping and waking.
#include <atomic>
#include <thread>

#include "tests/conformance/world.h"

namespace genie::datapath::conformance {
namespace {

class Connection : public ConformanceTest {};

TEST_P(Connection, TheTokenReachesTheListener) {
  const std::span<const std::byte> token = listener()->endpoint_token(listener_end_);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(token.data()), token.size()), "token");
}

TEST_P(Connection, SeveralEndpointsAreToldApart) {
  EndpointId second_client;
  EndpointId second_listener;
  ASSERT_TRUE(connect(client(), second_client, second_listener, "second").ok());
  EXPECT_NE(second_client, client_end_);
  EXPECT_NE(second_listener, listener_end_);
  Buffer message = make_buffer(10, 1);
  ASSERT_TRUE(client()->send(second_client, message, 7, options()).ok());
  const Completion received = await(listener(), Opcode::kReceive);
  EXPECT_EQ(received.endpoint, second_listener);
  EXPECT_EQ(received.immediate, 7U);
}

TEST_P(Connection, NobodyThereIsUnreachable) {
  const std::string address = listener()->address();
  const std::string nobody = address + ".nobody";
  EXPECT_EQ(client()->connect(nobody, {}, world_->after_ms(1'000)).code(), Errc::kUnreachable);
}

TEST_P(Connection, AnAddressOfAnotherKindIsRefused) {
  EXPECT_EQ(client()->connect("carrier-pigeon:7", {}, world_->after_ms(1'000)).code(), Errc::kInvalidArgument);
  EXPECT_EQ(client()->listen("carrier-pigeon:7").code(), Errc::kInvalidArgument);
}

TEST_P(Connection, TwoListenersAtOneAddressAreRefused) {
  EXPECT_EQ(listener()->listen(world_->where()).code(), Errc::kAlreadyExists);
  if (world_->one_host()) {
    EXPECT_EQ(client()->listen(world_->where()).code(), Errc::kAlreadyExists);
  }
}

TEST_P(Connection, CloseIsSeenOnBothSidesOnce) {
  ASSERT_TRUE(client()->close(client_end_).ok());
  EXPECT_EQ(await(client(), Opcode::kDisconnected).endpoint, client_end_);
  EXPECT_EQ(await(listener(), Opcode::kDisconnected).endpoint, listener_end_);
  EXPECT_EQ(client()->close(client_end_).code(), Errc::kStale);
  Buffer message = make_buffer(10, 1);
  EXPECT_EQ(client()->send(client_end_, message, 0, options()).code(), Errc::kDisconnected);
  EXPECT_TRUE(message) << "a refused post leaves the buffer with the caller";
  EXPECT_TRUE(client().inbox().empty());
  EXPECT_TRUE(listener().inbox().empty());
}

TEST_P(Connection, TheListenerMayCloseToo) {
  ASSERT_TRUE(listener()->close(listener_end_).ok());
  await(listener(), Opcode::kDisconnected);
  EXPECT_EQ(await(client(), Opcode::kDisconnected).endpoint, client_end_);
}

TEST_P(Connection, WhatWasSentBeforeAGoodbyeArrivesBeforeIt) {
  for (uint32_t i = 0; i < 10; ++i) {
    Buffer message = make_buffer(100, i);
    ASSERT_TRUE(client()->send(client_end_, message, i, options()).ok());
    await(client(), Opcode::kSend);
  }
  ASSERT_TRUE(client()->close(client_end_).ok());
  run_until([&] { return !listener().inbox().empty() && listener().inbox().back().opcode == Opcode::kDisconnected; });
  ASSERT_EQ(listener().inbox().size(), 11U);
  for (uint32_t i = 0; i < 10; ++i) {
    EXPECT_EQ(listener().inbox()[i].opcode, Opcode::kReceive);
    EXPECT_EQ(listener().inbox()[i].immediate, i);
  }
}

TEST_P(Connection, AReusedSlotIsNotTheOldEndpoint) {
  ASSERT_TRUE(client()->close(client_end_).ok());
  await(client(), Opcode::kDisconnected);
  await(listener(), Opcode::kDisconnected);
  EndpointId second_client;
  EndpointId second_listener;
  ASSERT_TRUE(connect(client(), second_client, second_listener, "again").ok());
  EXPECT_NE(second_client, client_end_);
  EXPECT_EQ(client()->close(client_end_).code(), Errc::kStale);
  EXPECT_TRUE(client()->close(second_client).ok());
}

TEST_P(Connection, TooManyEndpointsAreRefusedAndTheOthersLive) {
  std::vector<EndpointId> ends(1);
  EndpointId ignored;
  Status status;
  while (ends.size() <= 4 * kQuotaEndpoints) {
    status = connect(client(), ends.emplace_back(), ignored, "one more");
    if (!status.ok()) break;
  }
  EXPECT_EQ(status.code(), Errc::kQuotaExceeded);
  EXPECT_EQ(ends.size(), kQuotaEndpoints + 1);
  Buffer message = make_buffer(10, 1);
  ASSERT_TRUE(client()->send(client_end_, message, 0, options()).ok());
  await(listener(), Opcode::kReceive);
  ASSERT_TRUE(client()->close(client_end_).ok());
  await(listener(), Opcode::kDisconnected);
  EXPECT_TRUE(connect(client(), client_end_, ignored, "a place is free again").ok());
}

TEST_P(Connection, ATransportThatGoesIsADisconnect) {
  world_->client().reset();
  const Deadline deadline = Deadline::after_ms(patience_ms());
  while (listener().inbox().empty() && !deadline.expired()) {
    if (!listener().poll()) world_->idle();
  }
  ASSERT_EQ(listener().inbox().size(), 1U);
  EXPECT_EQ(listener().inbox()[0].opcode, Opcode::kDisconnected);
}

TEST_P(Connection, WakeEndsAWaitAndIsNotLost) {
  if (!world_->blocking_calls_need_peer()) GTEST_SKIP() << GetParam().name << " has a virtual clock and one thread";
  listener()->wake();
  const Deadline deadline = Deadline::after_ms(patience_ms());
  listener()->wait(3 * patience_ms() * 1'000'000);
  EXPECT_FALSE(deadline.expired()) << "a wake() before the wait() was lost";
  std::thread waker([&] { listener()->wake(); });
  listener()->wait(3 * patience_ms() * 1'000'000);
  waker.join();
  EXPECT_FALSE(deadline.expired());
}

// Ping-pong between two threads that always sleep: a lost wake-up shows as a wait that runs into its timeout.
TEST_P(Connection, NoWakeUpIsLost) {
  if (!world_->blocking_calls_need_peer()) GTEST_SKIP() << GetParam().name << " has a virtual clock and one thread";
  constexpr uint32_t kRounds = 5'000;
  const Deadline deadline = Deadline::after_ms(3 * patience_ms());
  const auto play = [&](Side& side, bool begins) {
    uint32_t turn = 0;
    if (begins) {
      Buffer message = make_buffer(8, 0);
      EXPECT_TRUE(side->send(endpoint(side), message, 0, options()).ok());
    }
    while (turn < kRounds && !deadline.expired()) {
      while (!side.inbox().empty()) {
        const Completion completion = std::move(side.inbox().front());
        side.inbox().pop_front();
        if (completion.opcode != Opcode::kReceive) continue;
        EXPECT_EQ(completion.immediate, turn);
        ++turn;
        Buffer message = make_buffer(8, turn);
        if (turn < kRounds || !begins) {
          EXPECT_TRUE(side->send(endpoint(side), message, begins ? turn : turn - 1, options()).ok());
        }
      }
      if (turn < kRounds && !side.poll()) side->wait(3 * patience_ms() * 1'000'000);
    }
    EXPECT_EQ(turn, kRounds);
  };
  std::thread server([&] { play(listener(), false); });
  play(client(), true);
  server.join();
  EXPECT_FALSE(deadline.expired());
}

INSTANTIATE_TEST_SUITE_P(Transports, Connection, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace genie::datapath::conformance
