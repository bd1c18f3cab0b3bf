#include "datapath/shm/message_ring.h"

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

namespace genie::datapath {
namespace {

class MessageRingTest : public testing::Test {
 protected:
  using Ring = queue::SpscRing<RingUnit>;

  void SetUp() override {
    const size_t bytes = Ring::bytes(kRingUnits);
    memory_.resize(bytes + queue::kNoSharing);
    void* at = memory_.data();
    size_t space = memory_.size();
    at = std::align(queue::kNoSharing, bytes, at, space);
    control_ = static_cast<queue::SpscControl<>*>(at);
    const Ring ring = Ring::format(at, kRingUnits);
    units_ = reinterpret_cast<RingUnit*>(static_cast<std::byte*>(at) + sizeof(*control_));
    sender_.emplace(ring);
    receiver_.emplace(ring);
  }

  std::vector<std::byte> take() {
    std::vector<std::byte> bytes(receiver_->header().size);
    receiver_->take(bytes.data());
    return bytes;
  }

  static std::vector<std::byte> message(size_t size, unsigned mark) {
    std::vector<std::byte> bytes(size);
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(mark + i);
    return bytes;
  }

  void forge_header(uint64_t position, const MessageHeader& header) {
    units_[position % kRingUnits] = std::bit_cast<RingUnit>(header);
  }

  std::vector<std::byte> memory_;
  queue::SpscControl<>* control_ = nullptr;
  RingUnit* units_ = nullptr;
  std::optional<MessageSender<>> sender_;
  std::optional<MessageReceiver<>> receiver_;
};

TEST_F(MessageRingTest, CarriesMessagesAndNotifications) {
  EXPECT_EQ(receiver_->look(), RingState::kEmpty);
  const auto payload = message(33, 1);
  ASSERT_TRUE(sender_->try_send(MessageKind::kMessage, 7, payload));
  ASSERT_TRUE(sender_->try_send(MessageKind::kNotify, 8, {}));
  ASSERT_EQ(receiver_->look(), RingState::kReady);
  EXPECT_EQ(receiver_->header().immediate, 7U);
  EXPECT_EQ(take(), payload);
  ASSERT_EQ(receiver_->look(), RingState::kReady);
  EXPECT_EQ(receiver_->header().kind, MessageKind::kNotify);
  take();
  EXPECT_EQ(receiver_->look(), RingState::kEmpty);
}

TEST_F(MessageRingTest, EverySizeCrossesTheEndOfTheMemory) {
  std::mt19937 random(1);
  std::deque<std::vector<std::byte>> sent;
  for (unsigned step = 0; step < 20'000; ++step) {
    const size_t limit = step % 10 == 0 ? kMaxMessageBytes + 1 : 300;
    auto payload = message(random() % limit, step);
    if (sender_->try_send(MessageKind::kMessage, step, payload)) sent.push_back(std::move(payload));
    while (random() % 2 == 0 && receiver_->look() == RingState::kReady) {
      ASSERT_FALSE(sent.empty());
      ASSERT_EQ(take(), sent.front());
      sent.pop_front();
    }
  }
  while (receiver_->look() == RingState::kReady) {
    ASSERT_EQ(take(), sent.front());
    sent.pop_front();
  }
  EXPECT_TRUE(sent.empty());
}

TEST_F(MessageRingTest, AFullRingRefusesAndHasRoomAgainLater) {
  const auto payload = message(kMaxMessageBytes, 1);
  ASSERT_TRUE(sender_->try_send(MessageKind::kMessage, 0, payload));
  EXPECT_FALSE(sender_->has_room(payload.size()));
  EXPECT_FALSE(sender_->try_send(MessageKind::kMessage, 0, payload));
  ASSERT_EQ(receiver_->look(), RingState::kReady);
  take();
  EXPECT_TRUE(sender_->has_room(payload.size()));
  EXPECT_TRUE(sender_->try_send(MessageKind::kMessage, 0, payload));
}

TEST_F(MessageRingTest, TwoThreads) {
  constexpr uint32_t kCount = 50'000;
  std::thread producer([&] {
    for (uint32_t i = 0; i < kCount;) {
      if (sender_->try_send(MessageKind::kMessage, i, message(i % 100, i))) {
        ++i;
      } else {
        std::this_thread::yield();
      }
    }
  });
  for (uint32_t i = 0; i < kCount;) {
    if (receiver_->look() != RingState::kReady) {
      std::this_thread::yield();
      continue;
    }
    EXPECT_EQ(receiver_->header().immediate, i);
    EXPECT_EQ(take(), message(i % 100, i));
    ++i;
  }
  producer.join();
}

TEST_F(MessageRingTest, AnImpossibleTailIsCorrupt) {
  control_->tail.store(kRingUnits + 1);
  EXPECT_EQ(receiver_->look(), RingState::kCorrupt);
}

TEST_F(MessageRingTest, ATailThatGoesBackIsCorrupt) {
  ASSERT_TRUE(sender_->try_send(MessageKind::kMessage, 0, message(100, 1)));
  ASSERT_EQ(receiver_->look(), RingState::kReady);
  take();
  control_->tail.store(1);
  EXPECT_EQ(receiver_->look(), RingState::kCorrupt);
}

TEST_F(MessageRingTest, AnImpossibleHeadIsCorruptForTheSender) {
  control_->head.store(uint64_t{1} << 50);
  const auto payload = message(kMaxMessageBytes, 1);
  while (sender_->try_send(MessageKind::kMessage, 0, payload)) {
  }
  EXPECT_TRUE(sender_->corrupt());
}

TEST_F(MessageRingTest, ImplausibleHeadersAreCorrupt) {
  const std::vector<MessageHeader> hostile = {
      {kMaxMessageBytes + 1, MessageKind::kMessage, 0, 0},
      {UINT32_MAX, MessageKind::kMessage, 0, 0},
      {1, MessageKind::kNotify, 0, 0},
      {0, static_cast<MessageKind>(0), 0, 0},
      {0, static_cast<MessageKind>(77), 0, 0},
  };
  for (const MessageHeader& header : hostile) {
    SetUp();
    forge_header(0, header);
    control_->tail.store(1);
    EXPECT_EQ(receiver_->look(), RingState::kCorrupt);
  }
}

// The header counts as it was when it was first seen, whatever the peer writes there later.
TEST_F(MessageRingTest, AHeaderIsReadOnce) {
  const auto payload = message(100, 1);
  ASSERT_TRUE(sender_->try_send(MessageKind::kMessage, 3, payload));
  ASSERT_EQ(receiver_->look(), RingState::kReady);
  forge_header(0, {UINT32_MAX, static_cast<MessageKind>(9), 4, 0});
  ASSERT_EQ(receiver_->look(), RingState::kReady);
  EXPECT_EQ(receiver_->header().immediate, 3U);
  EXPECT_EQ(take(), payload);
}

TEST_F(MessageRingTest, AMessageThatIsNotAllThereWaits) {
  forge_header(0, {100, MessageKind::kMessage, 0, 0});
  control_->tail.store(3);
  EXPECT_EQ(receiver_->look(), RingState::kEmpty);
  control_->tail.store(message_units(100));
  EXPECT_EQ(receiver_->look(), RingState::kReady);
}

// Whatever lies in the memory: no access outside (a sanitizer would tell), and an end.
TEST_F(MessageRingTest, NoiseIsSurvived) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 2'000; ++round) {
    SetUp();
    for (uint64_t i = 0; i < 64; ++i) {
      forge_header(i, {static_cast<uint32_t>(random() % (kMaxMessageBytes + 100)),
                       static_cast<MessageKind>(random() % 3), 0, static_cast<uint32_t>(random())});
    }
    control_->tail.store(random() % (kRingUnits + 10));
    int taken = 0;
    while (receiver_->look() == RingState::kReady) {
      take();
      control_->tail.store(control_->tail.load() + random() % 100);
      ASSERT_LT(++taken, 1'000'000);
      if (random() % 64 == 0) break;
    }
  }
}

}  // namespace
}  // namespace genie::datapath
