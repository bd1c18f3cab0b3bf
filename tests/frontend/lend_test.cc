// Pinned memory and non_blocking copies: what is read in place, what is copied, and that nobody sees the difference.
#include <thread>

#include "tests/frontend/session_fixture.h"

namespace genie::test {
namespace {

constexpr int64_t kElements = 1 << 18;
constexpr uint64_t kBytes = kElements * sizeof(float);

class LendTest : public SessionTest {
 protected:
  void SetUp() override {
    SessionTest::SetUp();
    before = session->stats();
  }
  // Bytes that were written since the test began: when the tensor was captured, and afterwards.
  uint64_t snapshot_bytes() const { return session->stats().snapshot_bytes - before.snapshot_bytes; }
  uint64_t copied_bytes() const { return session->stats().upload_copied_bytes - before.upload_copied_bytes; }
  torch::Tensor lend(const torch::Tensor& pinned) const {
    return pinned.to(device(), pinned.scalar_type(), /*non_blocking=*/true);
  }
  static torch::Tensor pinned_input() {
    auto input = torch::randn({kElements}).pin_memory();
    EXPECT_TRUE(input.is_pinned());
    return input;
  }

  Stats before;
};

// A loader's loop: one pinned buffer, filled again after each step's value came back.
TEST_F(LendTest, ATransientInputIsNeverCopied) {
  const torch::NoGradGuard no_grad;
  auto buffer = pinned_input();
  for (int step = 0; step < 5; ++step) {
    buffer.normal_();
    const auto expected = (buffer * 2 + 1).sum();
    const auto result = (lend(buffer) * 2 + 1).sum();
    EXPECT_TRUE(torch::equal(result.cpu(), expected)) << step;
    buffer.zero_();
  }
  EXPECT_EQ(snapshot_bytes(), remote_mode() ? 5 * kBytes : 0U);
  EXPECT_EQ(copied_bytes(), 0U);
}

TEST_F(LendTest, AKeptInputIsCopiedOnceAndStaysAsItWas) {
  auto buffer = pinned_input();
  const auto expected = buffer.clone();
  const auto remote = lend(buffer);
  const auto view = remote.narrow(0, 10, 100);
  session->synchronize();
  buffer.zero_();
  EXPECT_TRUE(torch::equal(remote.cpu(), expected));
  EXPECT_TRUE(torch::equal((view * 2).cpu(), expected.narrow(0, 10, 100) * 2));
  EXPECT_EQ(snapshot_bytes() + copied_bytes(), kBytes);
}

TEST_F(LendTest, AFetchedValueIsASynchronizationToo) {
  auto buffer = pinned_input();
  const auto expected = buffer.clone();
  const auto remote = lend(buffer);
  EXPECT_EQ((remote - remote).sum().item<float>(), 0.0F);
  buffer.zero_();
  EXPECT_TRUE(torch::equal(remote.cpu(), expected));
  EXPECT_EQ(snapshot_bytes() + copied_bytes(), kBytes);
}

// The value that comes back has nothing to do with what is lent, which has not even been sent.
TEST_F(LendTest, AFetchOfSomethingElseSettlesWhatWaits) {
  const auto other = torch::arange(100, torch::kFloat).to(device());
  session->synchronize();
  auto buffer = pinned_input();
  const auto expected = buffer.clone();
  const auto remote = lend(buffer);
  const auto before_fetch = session->stats();
  EXPECT_EQ(other.cpu()[99].item<float>(), 99.0F);
  EXPECT_EQ(session->stats().flushes, before_fetch.flushes) << "what waits is not cut for it";
  buffer.zero_();
  EXPECT_TRUE(torch::equal((remote + 0).cpu(), expected));
}

TEST_F(LendTest, AWriteOnTheDeviceDoesNotReachTheBuffer) {
  auto buffer = pinned_input();
  const auto expected = buffer.clone();
  auto remote = lend(buffer);
  remote.add_(1);
  EXPECT_TRUE(torch::equal(remote.cpu(), expected + 1));
  EXPECT_TRUE(torch::equal(buffer, expected));
  // Over shared memory the snapshot lies in a region, which is not written in place either.
  EXPECT_EQ(snapshot_bytes() + copied_bytes(), remote_mode() ? 2 * kBytes : kBytes);
}

TEST_F(LendTest, AFetchOfTheInputItselfIsPrivate) {
  auto buffer = pinned_input();
  const auto expected = buffer.clone();
  auto value = lend(buffer).cpu();
  value.zero_();
  EXPECT_TRUE(torch::equal(buffer, expected));
  buffer.fill_(1);
  EXPECT_TRUE(torch::equal(value, torch::zeros({kElements})));
}

TEST_F(LendTest, TheBufferMayGoBeforeItIsSent) {
  torch::Tensor expected;
  torch::Tensor remote;
  {
    const auto buffer = pinned_input();
    expected = buffer.clone();
    remote = lend(buffer) * 1;
  }
  for (int i = 0; i < 4; ++i) (void)torch::full({kElements}, i).pin_memory();  // reuses its memory if that was freed
  EXPECT_TRUE(torch::equal(remote.cpu(), expected));
}

TEST_F(LendTest, WhatIsNotPromisedIsSnapshotAtOnce) {
  auto pinned = pinned_input();
  auto plain = torch::randn({kElements});
  const auto expected_pinned = pinned.clone();
  const auto expected_plain = plain.clone();
  const auto blocking = pinned.to(device());
  const auto pageable = plain.to(device(), torch::kFloat, /*non_blocking=*/true);
  pinned.zero_();
  plain.zero_();
  EXPECT_TRUE(torch::equal(blocking.cpu(), expected_pinned));
  EXPECT_TRUE(torch::equal(pageable.cpu(), expected_plain));
  EXPECT_EQ(snapshot_bytes(), 2 * kBytes);
}

// A conversion writes other bytes than the buffer holds, and so does a part of it with gaps.
TEST_F(LendTest, WhatHasToBeWrittenAnewIsASnapshot) {
  auto buffer = pinned_input();
  const auto expected = buffer.clone();
  const auto half = buffer.to(device(), torch::kDouble, /*non_blocking=*/true);
  const auto column = lend(buffer.view({512, 512}).select(1, 3));
  const auto odd = lend(buffer.narrow(0, 1, 1000));
  buffer.zero_();
  EXPECT_TRUE(torch::equal(half.cpu(), expected.to(torch::kDouble)));
  EXPECT_TRUE(torch::equal(column.cpu(), expected.view({512, 512}).select(1, 3)));
  EXPECT_TRUE(torch::equal(odd.cpu(), expected.narrow(0, 1, 1000)));
}

TEST_F(LendTest, APartOfABufferAndATransposedOneAreReadInPlace) {
  const torch::NoGradGuard no_grad;
  auto buffer = pinned_input();
  const auto part = buffer.narrow(0, 1024, 4096);
  const auto turned = buffer.view({512, 512}).t();
  const auto of_part = lend(part) + 1;
  const auto of_turned = lend(turned) + 1;
  EXPECT_TRUE(torch::equal(of_part.cpu(), part + 1));
  EXPECT_TRUE(torch::equal(of_turned.cpu(), turned + 1));
  if (!remote_mode()) {
    EXPECT_EQ(snapshot_bytes() + copied_bytes(), 0U);
  }
}

// Two threads read one input: it outlives the submission of either.
TEST_F(LendTest, AnInputThatAnotherThreadReadsTooIsKept) {
  const torch::NoGradGuard no_grad;
  auto buffer = pinned_input();
  const auto expected = buffer.clone();
  auto remote = std::make_optional(lend(buffer));
  session->synchronize();
  torch::Tensor theirs;
  std::thread([&] {
    const torch::NoGradGuard in_thread;
    theirs = *remote * 3;
  }).join();
  const auto ours = *remote * 2;
  remote.reset();
  EXPECT_TRUE(torch::equal(ours.cpu(), expected * 2));
  buffer.zero_();
  EXPECT_TRUE(torch::equal(theirs.cpu(), expected * 3));
}

}  // namespace
}  // namespace genie::test
