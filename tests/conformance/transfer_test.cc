// Moving bytes: messages, writes, reads, order, back-pressure, classes.
#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "tests/conformance/world.h"

namespace genie::datapath::conformance {
namespace {

class Transfer : public ConformanceTest {};

TEST_P(Transfer, MessagesOfEverySizeArriveInOrderBothWays) {
  const size_t largest = client()->capabilities().max_send_bytes;
  const std::vector<size_t> sizes = {0, 1, 15, 16, 17, 255, 256, 4096, largest - 1, largest};
  for (Side* sender : {&client(), &listener()}) {
    for (uint32_t i = 0; i < sizes.size() * 8; ++i) {
      Buffer message = make_buffer(sizes[i % sizes.size()], i);
      ASSERT_TRUE((*sender)->send(endpoint(*sender), message, i, options({}, i + 1)).ok());
      EXPECT_FALSE(message) << "posting moves the buffer in";
    }
    for (uint32_t i = 0; i < sizes.size() * 8; ++i) {
      const Completion received = await(other(*sender), Opcode::kReceive);
      EXPECT_EQ(received.result, Errc::kOk);
      EXPECT_EQ(received.immediate, i);
      EXPECT_EQ(received.endpoint, endpoint(other(*sender)));
      ASSERT_EQ(received.buffer.size(), sizes[i % sizes.size()]);
      EXPECT_TRUE(holds(received.buffer.bytes(), i));
    }
    for (uint32_t i = 0; i < sizes.size() * 8; ++i) {
      const Completion sent = await(*sender, Opcode::kSend);
      EXPECT_EQ(sent.user_data, i + 1);
      EXPECT_TRUE(holds(sent.buffer.bytes(), i)) << "the buffer comes back as it was";
    }
  }
}

TEST_P(Transfer, AMessageThatIsTooLargeIsRefused) {
  Buffer message = make_buffer(client()->capabilities().max_send_bytes + 1, 1);
  EXPECT_EQ(client()->send(client_end_, message, 0, options()).code(), Errc::kOutOfRange);
  EXPECT_TRUE(message);
}

TEST_P(Transfer, WritesAndReadsMoveTheRightBytes) {
  for (Side* owner : {&listener(), &client()}) {
    const SharedPair pair = share(*owner, 3 << 20);
    Side& peer = other(*owner);
    for (const size_t size : {size_t{0}, size_t{1}, size_t{63}, size_t{4096}, size_t{300'000}, size_t{2} << 20}) {
      const auto seed = static_cast<uint32_t>(size + 1);
      const size_t offset = size % 1000;
      Buffer bytes = make_buffer(size, seed);
      ASSERT_TRUE(peer->write(endpoint(peer), bytes, pair.remote, offset, options({}, size)).ok());
      const Completion written = await(peer, Opcode::kWrite);
      EXPECT_EQ(written.result, Errc::kOk);
      EXPECT_EQ(written.user_data, size);
      EXPECT_TRUE(holds(written.buffer.bytes(), seed));
      Buffer back = make_buffer(size, 0);
      ASSERT_TRUE(peer->read(endpoint(peer), back, pair.remote, offset, options()).ok());
      const Completion read = await(peer, Opcode::kRead);
      EXPECT_EQ(read.result, Errc::kOk);
      EXPECT_EQ(read.buffer.size(), size);
      EXPECT_TRUE(holds(read.buffer.bytes(), seed));
      EXPECT_TRUE(holds({pair.region.data + offset, size}, seed));
    }
    EXPECT_TRUE(owner->inbox().empty()) << "plain writes and reads don't disturb the owner";
  }
}

TEST_P(Transfer, ANotificationComesAfterItsBytes) {
  const SharedPair pair = share(client(), 1 << 20);
  for (uint32_t i = 0; i < 200; ++i) {
    const size_t size = i % 5 == 0 ? size_t{700'000} : size_t{64} << (i % 8);
    Buffer bytes = make_buffer(size, i);
    ASSERT_TRUE(listener()->write_with_notify(listener_end_, bytes, pair.remote, i, i, options()).ok());
    const Completion notified = await(client(), Opcode::kNotified);
    EXPECT_EQ(notified.immediate, i);
    EXPECT_EQ(notified.endpoint, client_end_);
    ASSERT_TRUE(holds({pair.region.data + i, size}, i));
  }
}

// Within a class the peer sees notifications and messages in the order in which they were posted.
TEST_P(Transfer, OneClassKeepsItsOrder) {
  const SharedPair pair = share(listener(), 1 << 20);
  for (const TransferClass transfer_class : {TransferClass::kControl, TransferClass::kLatency, TransferClass::kBulk}) {
    for (uint32_t i = 0; i < 60; ++i) {
      Buffer bytes = make_buffer(i % 3 == 0 ? 600'000 : 100, i);
      if (i % 2 == 0) {
        ASSERT_TRUE(client()->write_with_notify(client_end_, bytes, pair.remote, 0, i, options(transfer_class)).ok());
      } else {
        Buffer message = make_buffer(100, i);
        ASSERT_TRUE(client()->send(client_end_, message, i, options(transfer_class)).ok());
      }
    }
    for (uint32_t i = 0; i < 60; ++i) {
      const Completion came = await(listener(), [](const Completion&) { return true; });
      EXPECT_EQ(came.opcode, i % 2 == 0 ? Opcode::kNotified : Opcode::kReceive);
      EXPECT_EQ(came.immediate, i);
    }
  }
}

TEST_P(Transfer, BulkYieldsToLatencyAndControl) {
  const SharedPair pair = share(client(), 32 << 20);
  Buffer large = make_buffer(32 << 20, 1);
  ASSERT_TRUE(listener()->write(listener_end_, large, pair.remote, 0, options(TransferClass::kBulk, 1)).ok());
  listener().poll();
  Buffer small = make_buffer(1000, 2);
  ASSERT_TRUE(listener()->send(listener_end_, small, 2, options(TransferClass::kLatency, 2)).ok());
  Buffer tiny = make_buffer(10, 3);
  ASSERT_TRUE(listener()->send(listener_end_, tiny, 3, options(TransferClass::kControl, 3)).ok());
  std::vector<uint64_t> order;
  while (order.size() < 3) {
    order.push_back(await(listener(), [](const Completion&) { return true; }).user_data);
  }
  EXPECT_EQ(order.back(), 1U) << "the bulk transfer ends last";
  std::sort(order.begin(), order.end());
  EXPECT_EQ(order, (std::vector<uint64_t>{1, 2, 3}));
  EXPECT_TRUE(holds({pair.region.data, pair.region.size}, 1));
}

TEST_P(Transfer, BackPressureLeavesTheBufferAndLosesNothing) {
  uint32_t posted = 0;
  for (; posted < 1'000'000; ++posted) {
    Buffer message = make_buffer(1000, posted);
    const Status status = client()->send(client_end_, message, posted, options());
    if (status.ok()) continue;
    ASSERT_EQ(status.code(), Errc::kAgain);
    ASSERT_TRUE(message);
    EXPECT_TRUE(holds(message.bytes(), posted));
    break;
  }
  ASSERT_LT(posted, 1'000'000U) << "a peer that does not read must be noticed";
  ASSERT_GT(posted, 0U);
  for (uint32_t i = 0; i < posted; ++i) {
    const Completion received = await(listener(), Opcode::kReceive);
    ASSERT_EQ(received.immediate, i);
    ASSERT_TRUE(holds(received.buffer.bytes(), i));
  }
  for (uint32_t i = 0; i < posted; ++i) EXPECT_EQ(await(client(), Opcode::kSend).result, Errc::kOk);
  Buffer message = make_buffer(10, 1);
  EXPECT_TRUE(client()->send(client_end_, message, 0, options()).ok());
}

TEST_P(Transfer, ReceivedBuffersOutliveTheTransport) {
  Buffer message = make_buffer(500, 3);
  ASSERT_TRUE(client()->send(client_end_, message, 0, options()).ok());
  Completion received = await(listener(), Opcode::kReceive);
  world_.reset();
  EXPECT_TRUE(holds(received.buffer.bytes(), 3));
}

TEST_P(Transfer, ARegionInUseIsBusy) {
  const SharedPair pair = share(client(), 16 << 20);
  Buffer large = make_buffer(16 << 20, 1);
  ASSERT_TRUE(listener()->write(listener_end_, large, pair.remote, 0, options(TransferClass::kBulk)).ok());
  EXPECT_EQ(listener()->drop_import(pair.remote).code(), Errc::kBusy);
  const SharedPair source = share(listener(), 16 << 20);
  Buffer from_region = Buffer::borrow({source.region.data, source.region.size}, source.region.key);
  ASSERT_TRUE(listener()->write(listener_end_, from_region, pair.remote, 0, options(TransferClass::kBulk)).ok());
  EXPECT_EQ(listener()->release(source.region.key).code(), Errc::kBusy);
  await(listener(), Opcode::kWrite);
  await(listener(), Opcode::kWrite);
  EXPECT_TRUE(listener()->release(source.region.key).ok());
  EXPECT_TRUE(listener()->drop_import(pair.remote).ok());
}

TEST_P(Transfer, CountersSayWhatWasCopied) {
  const SharedPair pair = share(client(), 1 << 20);
  const Transport::Counters before = listener()->counters();
  Buffer bytes = make_buffer(1 << 20, 1);
  ASSERT_TRUE(listener()->write(listener_end_, bytes, pair.remote, 0, options()).ok());
  await(listener(), Opcode::kWrite);
  EXPECT_LE(listener()->counters().bytes_copied_tx - before.bytes_copied_tx, size_t{1} << 20) << "at most one pass";
  Buffer message = make_buffer(100, 1);
  ASSERT_TRUE(listener()->send(listener_end_, message, 0, options()).ok());
  await(listener(), Opcode::kSend);
  await(client(), Opcode::kReceive);
  EXPECT_EQ(listener()->counters().messages_sent - before.messages_sent, 1U);
  EXPECT_EQ(client()->counters().messages_received, 1U);
}

// A random load in both directions: every post ends exactly once, every message and notification arrives exactly once.
TEST_P(Transfer, EveryPostEndsExactlyOnce) {
  std::mt19937 random(test_seed());
  const std::map<Side*, SharedPair> regions = {{&client(), share(listener(), 1 << 20)},
                                               {&listener(), share(client(), 1 << 20)}};
  std::map<Side*, std::set<uint64_t>> open;
  std::map<Side*, size_t> expected;
  std::map<Side*, size_t> arrived;
  uint64_t next = 1;
  const auto collect = [&] {
    for (Side* side : {&client(), &listener()}) {
      for (; !side->inbox().empty(); side->inbox().pop_front()) {
        const Completion& completion = side->inbox().front();
        EXPECT_EQ(completion.result, Errc::kOk);
        if (completion.opcode == Opcode::kReceive || completion.opcode == Opcode::kNotified) {
          ++arrived[side];
        } else {
          EXPECT_EQ(open[side].erase(completion.user_data), 1U) << "a completion that nobody waits for";
        }
      }
    }
  };
  for (int step = 0; step < 20'000; ++step) {
    Side& side = random() % 2 == 0 ? client() : listener();
    const uint64_t id = next++;
    const PostOptions post = options(static_cast<TransferClass>(random() % 3), id);
    const RemoteRegion& remote = regions.at(&side).remote;
    const uint32_t kind = random() % 4;
    const size_t limit = kind == 0 ? 3000 : random() % 50 == 0 ? size_t{1} << 20 : 5000;
    Buffer buffer = make_buffer(random() % limit, step);
    Status status;
    if (kind == 0) status = side->send(endpoint(side), buffer, 1, post);
    if (kind == 1) status = side->write(endpoint(side), buffer, remote, 0, post);
    if (kind == 2) status = side->write_with_notify(endpoint(side), buffer, remote, 0, 1, post);
    if (kind == 3) status = side->read(endpoint(side), buffer, remote, 0, post);
    if (status.ok()) {
      EXPECT_FALSE(buffer);
      open[&side].insert(id);
      if (kind == 0 || kind == 2) ++expected[&other(side)];
    } else {
      ASSERT_EQ(status.code(), Errc::kAgain) << status.to_string();
      EXPECT_TRUE(buffer);
    }
    if (random() % 4 == 0) listener().poll();
    if (random() % 4 == 0) client().poll();
    collect();
  }
  const bool ended = run_until([&] {
    collect();
    return open[&client()].empty() && open[&listener()].empty() && arrived == expected;
  });
  EXPECT_TRUE(ended) << open[&client()].size() << " and " << open[&listener()].size() << " posts did not end";
}

INSTANTIATE_TEST_SUITE_P(Transports, Transfer, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace genie::datapath::conformance
