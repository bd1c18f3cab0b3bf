// Failures: deadlines, goodbyes with work pending, peers that die.
#include <cstring>
#include <map>

#include "tests/conformance/peer.h"
#include "tests/conformance/world.h"

namespace genie::datapath::conformance {
namespace {

class Failure : public ConformanceTest {
 protected:
  // Posts messages on `side` until the peer's inattention holds one up; answers how many were posted.
  uint64_t fill(Side& side, EndpointId end, const PostOptions& with) {
    uint64_t posted = 0;
    for (;; ++posted) {
      Buffer message = make_buffer(4000, static_cast<uint32_t>(posted));
      PostOptions post = with;
      post.user_data = posted + 1;
      if (!side->send(end, message, 0, post).ok()) return posted;
    }
  }

  // Polls only `side`, and `also`, until its endpoint has ended; answers how often each result came, and checks that the end
  // is last.
  std::map<Errc, uint64_t> until_disconnected(Side& side, EndpointId end, Side* also = nullptr) {
    std::map<Errc, uint64_t> results;
    const Deadline deadline = Deadline::after_ms(patience_ms());
    bool ended = false;
    while (!ended && !deadline.expired()) {
      if (!side.poll()) world_->idle();
      if (also != nullptr) also->poll();
      for (; !side.inbox().empty(); side.inbox().pop_front()) {
        const Completion& completion = side.inbox().front();
        if (completion.endpoint != end) continue;
        EXPECT_FALSE(ended) << "a completion after the end";
        if (completion.opcode == Opcode::kDisconnected) {
          ended = true;
        } else if (completion.opcode == Opcode::kSend || completion.opcode == Opcode::kWrite) {
          ++results[completion.result];
          EXPECT_TRUE(completion.buffer);
        }
      }
    }
    EXPECT_TRUE(ended);
    return results;
  }
};

uint64_t total(const std::map<Errc, uint64_t>& results) {
  uint64_t sum = 0;
  for (const auto& [code, count] : results) sum += count;
  return sum;
}

TEST_P(Failure, ADeadlineThatPassesEndsTheEndpoint) {
  PostOptions soon = options();
  soon.deadline = world_->after_ms(200);
  const uint64_t posted = fill(client(), client_end_, soon);
  ASSERT_GT(posted, 0U);
  const std::map<Errc, uint64_t> results = until_disconnected(client(), client_end_);
  EXPECT_EQ(total(results), posted) << "every post ends exactly once";
  EXPECT_GT(results.count(Errc::kTimedOut), 0U);
  Buffer message = make_buffer(1, 1);
  EXPECT_EQ(client()->send(client_end_, message, 0, options()).code(), Errc::kDisconnected);
  await(listener(), Opcode::kDisconnected);
}

TEST_P(Failure, OneLateOperationTakesTheOthersOfItsEndpointOnly) {
  EndpointId second_client;
  EndpointId second_listener;
  ASSERT_TRUE(connect(client(), second_client, second_listener, "second").ok());
  PostOptions soon = options();
  soon.deadline = world_->after_ms(200);
  const uint64_t posted = fill(client(), client_end_, soon);
  const std::map<Errc, uint64_t> results = until_disconnected(client(), client_end_);
  EXPECT_EQ(total(results), posted);
  Buffer message = make_buffer(10, 1);
  ASSERT_TRUE(client()->send(second_client, message, 5, options()).ok());
  const Completion received = await(listener(), [&](const Completion& completion) {
    return completion.opcode == Opcode::kReceive && completion.endpoint == second_listener;
  });
  EXPECT_EQ(received.immediate, 5U);
}

TEST_P(Failure, CloseCancelsWhatIsPending) {
  const uint64_t posted = fill(client(), client_end_, options());
  ASSERT_TRUE(client()->close(client_end_).ok());
  const std::map<Errc, uint64_t> results = until_disconnected(client(), client_end_);
  EXPECT_EQ(total(results), posted);
  EXPECT_EQ(results.count(Errc::kCancelled), 1U);
}

TEST_P(Failure, AGoodbyeOfThePeerEndsWhatIsPending) {
  const uint64_t posted = fill(client(), client_end_, options());
  ASSERT_TRUE(listener()->close(listener_end_).ok());
  const std::map<Errc, uint64_t> results = until_disconnected(client(), client_end_);
  EXPECT_EQ(total(results), posted);
  EXPECT_EQ(results.count(Errc::kDisconnected), 1U);
}

TEST_P(Failure, AHalfDoneBulkWriteComesBack) {
  const SharedPair pair = share(listener(), 32 << 20);
  Buffer large = make_buffer(32 << 20, 1);
  ASSERT_TRUE(client()->write(client_end_, large, pair.remote, 0, options(TransferClass::kBulk)).ok());
  client().poll();
  ASSERT_TRUE(client()->close(client_end_).ok());
  EXPECT_EQ(total(until_disconnected(client(), client_end_)), 1U);
  EXPECT_TRUE(client()->drop_import(pair.remote).ok()) << "nothing uses the region any more";
}

class Killed : public Failure {
 protected:
  // A peer process that has connected; `end_` is its endpoint.
  pid_t start(const std::string& role) {
    const pid_t peer = start_peer(GetParam().name, listener()->address(), role);
    end_ = await(listener(), Opcode::kConnected).endpoint;
    return peer;
  }
  bool one_process() const { return GetParam().make_remote_client == nullptr; }
  EndpointId end_;
};

#define SKIP_IN_ONE_PROCESS() \
  if (one_process()) GTEST_SKIP() << GetParam().name << " lives in one process: there is nobody to kill"

TEST_P(Killed, AnIdlePeerThatDiesIsNoticed) {
  SKIP_IN_ONE_PROCESS();
  kill_peer(start("idle"));
  EXPECT_EQ(await(listener(), Opcode::kDisconnected).endpoint, end_);
  EXPECT_EQ(listener()->close(end_).code(), Errc::kStale);
}

TEST_P(Killed, ASleepingListenerNoticesToo) {
  SKIP_IN_ONE_PROCESS();
  kill_peer(start("idle"));
  const Deadline deadline = Deadline::after_ms(patience_ms());
  while (listener().inbox().empty() && !deadline.expired()) {
    if (!listener().poll()) listener()->wait(patience_ms() * 1'000'000);
  }
  ASSERT_FALSE(listener().inbox().empty());
  EXPECT_EQ(listener().inbox()[0].opcode, Opcode::kDisconnected);
}

TEST_P(Killed, WhatIsPendingToADeadPeerEndsOnce) {
  SKIP_IN_ONE_PROCESS();
  const pid_t peer = start("chatty");
  uint64_t posted = fill(listener(), end_, options());
  kill_peer(peer);
  const std::map<Errc, uint64_t> results = until_disconnected(listener(), end_);
  EXPECT_EQ(total(results), posted);
}

// It is there and answers nothing: where no hang-up can tell, its silence does.
TEST_P(Killed, AStoppedPeerIsGivenUp) {
  SKIP_IN_ONE_PROCESS();
  if (!listener()->capabilities().needs_polling) {
    GTEST_SKIP() << GetParam().name << " goes by hang-ups: a stopped peer may go on";
  }
  const pid_t peer = start("silent");
  const uint64_t posted = fill(listener(), end_, options());
  const std::map<Errc, uint64_t> results = until_disconnected(listener(), end_, &client());
  EXPECT_EQ(total(results), posted);
  Buffer message = make_buffer(10, 1);
  ASSERT_TRUE(listener()->send(listener_end_, message, 7, options()).ok()) << "the others do not notice";
  EXPECT_EQ(await(client(), Opcode::kReceive).immediate, 7U);
  kill_peer(peer);
}

TEST_P(Killed, MemoryOfADeadPeerStaysSafeToTouch) {
  SKIP_IN_ONE_PROCESS();
  const pid_t peer = start("owner");
  const Completion message = await(listener(), Opcode::kReceive);
  ASSERT_EQ(message.buffer.size(), sizeof(RemoteKey));
  RemoteKey key;
  std::memcpy(key.bytes.data(), message.buffer.data(), sizeof(key));
  Result<RemoteRegion> remote = listener()->import_region(end_, key);
  ASSERT_TRUE(remote.ok()) << remote.status().to_string();
  Buffer bytes = make_buffer(1000, 1);
  ASSERT_TRUE(listener()->write(end_, bytes, *remote, 0, options()).ok());
  EXPECT_EQ(await(listener(), Opcode::kWrite).result, Errc::kOk);
  kill_peer(peer);
  await(listener(), Opcode::kDisconnected);
  if (remote->mapped != nullptr) {
    EXPECT_TRUE(holds({remote->mapped, 1000}, 1));
    std::memset(remote->mapped, 1, remote->size);
  }
  Buffer more = make_buffer(1000, 1);
  EXPECT_EQ(listener()->write(end_, more, *remote, 0, options()).code(), Errc::kDisconnected);
  EXPECT_TRUE(listener()->drop_import(*remote).ok());
}

TEST_P(Killed, TheOthersDoNotNotice) {
  SKIP_IN_ONE_PROCESS();
  const pid_t peer = start("chatty");
  const SharedPair pair = share(client(), 100'000);
  kill_peer(peer);
  for (uint32_t i = 0; i < 50; ++i) {
    Buffer bytes = make_buffer(100'000, i);
    ASSERT_TRUE(listener()->write_with_notify(listener_end_, bytes, pair.remote, 0, i, options()).ok());
    EXPECT_EQ(await(client(), Opcode::kNotified).immediate, i);
    EXPECT_TRUE(holds({pair.region.data, pair.region.size}, i));
  }
  await(listener(), [&](const Completion& completion) {
    return completion.opcode == Opcode::kDisconnected && completion.endpoint == end_;
  });
}

// What it wrote last lies unread here when it dies, half of the times because this side was away.
TEST_P(Killed, AWriterThatDiesWhileItWritesTakesNobodyAlong) {
  SKIP_IN_ONE_PROCESS();
  constexpr uint32_t kRounds = 12;
  for (uint32_t round = 0; round < kRounds; ++round) {
    const pid_t peer = start("writer");
    const Result<Region> region = listener()->allocate(end_, 4096, world_->after_ms(patience_ms()));
    ASSERT_TRUE(region.ok()) << region.status().to_string();
    Buffer key = make_buffer(sizeof(RemoteKey), 0);
    std::memcpy(key.data(), region->remote.bytes.data(), sizeof(RemoteKey));
    ASSERT_TRUE(listener()->send(end_, key, 0, options()).ok());
    const volatile std::byte* const last = region->data + region->size - 1;
    ASSERT_TRUE(run_until([&] { return *last != std::byte{0}; })) << "the peer does not write";
    const Deadline moment = Deadline::after_ms(1 + round % 5);
    while (!moment.expired()) {
      if (round % 2 == 0) listener().poll();
    }
    kill_peer(peer);
    await(listener(), [&](const Completion& completion) {
      return completion.opcode == Opcode::kDisconnected && completion.endpoint == end_;
    });
    ASSERT_TRUE(listener()->release(region->key).ok());
    Buffer message = make_buffer(100, round);
    ASSERT_TRUE(client()->send(client_end_, message, round, options()).ok());
    const Completion received = await(listener(), Opcode::kReceive);
    EXPECT_EQ(received.immediate, round);
    EXPECT_TRUE(holds(received.buffer.bytes(), round));
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, Failure, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Transports, Killed, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace genie::datapath::conformance
