#include "src/node/fair_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <vector>

#include "tests/random_seed.h"

namespace genie::node {
namespace {

struct Piece {
  size_t session = 0;
  int number = 0;
  Piece* next = nullptr;
  std::shared_ptr<int> alive;
};

// Sessions that a device serves in turn; each piece of a session takes as long as the one before.
class Sharing : public ::testing::Test {
 protected:
  using Share = FairShare<Piece>;

  size_t add(uint64_t cost_ns) {
    sessions_.push_back(std::make_unique<Session>(Session{.cost_ns = cost_ns}));
    return sessions_.size() - 1;
  }
  void want(size_t session, int pieces = 1) {
    for (int i = 0; i < pieces; ++i) {
      Session& wanting = *sessions_[session];
      queue_.push(wanting.share, std::make_unique<Piece>(Piece{.session = session, .number = wanting.asked++}));
    }
  }
  // Whose piece was served; `nobody` when none waited. `meanwhile` happens while it is served.
  template <typename Meanwhile>
  size_t serve_while(const Meanwhile& meanwhile) {
    const std::unique_ptr<Piece> piece = queue_.pop();
    if (piece == nullptr) return kNobody;
    Session& served = *sessions_[piece->session];
    EXPECT_EQ(piece->number, served.done) << "a session's work stays in its order";
    ++served.done;
    served.had_ns += served.cost_ns;
    meanwhile();
    queue_.charge(served.share, served.cost_ns);
    return piece->session;
  }
  size_t serve() {
    return serve_while([] {});
  }
  std::vector<size_t> serve_times(size_t count) {
    std::vector<size_t> order;
    for (size_t i = 0; i < count; ++i) order.push_back(serve());
    return order;
  }
  uint64_t had_ns(size_t session) const { return sessions_[session]->had_ns; }
  int done(size_t session) const { return sessions_[session]->done; }

  static constexpr size_t kNobody = SIZE_MAX;

 private:
  struct Session {
    uint64_t cost_ns = 0;
    uint64_t had_ns = 0;
    int asked = 0;
    int done = 0;
    Share share;
  };
  std::vector<std::unique_ptr<Session>> sessions_;
  FairQueue<Piece> queue_;
};

TEST_F(Sharing, EqualSessionsTakeTurns) {
  constexpr size_t kSessions = 64;
  std::vector<size_t> round;
  // However much of each waits.
  for (size_t i = 0; i < kSessions; ++i) {
    want(add(1000), 5 + static_cast<int>(i));
    round.push_back(i);
  }
  for (int i = 0; i < 5; ++i) EXPECT_EQ(serve_times(kSessions), round) << "round " << i;
}

TEST_F(Sharing, IsByTimeAndNotByPieces) {
  want(add(9000), 100);
  want(add(1000), 1000);
  serve_times(500);
  EXPECT_NEAR(static_cast<double>(had_ns(0)), static_cast<double>(had_ns(1)), 9000);
  EXPECT_NEAR(done(0), 50, 1);
  EXPECT_NEAR(done(1), 450, 1);
}

// As clients do that wait for each answer: what they were owed while they waited comes with the next piece.
TEST_F(Sharing, WhoSendsPieceByPieceHasAsMuchAsWhoSendsManyAtOnce) {
  want(add(1000), 1000);
  want(add(1000));
  for (int i = 0; i < 400; ++i) {
    const int before = done(1);
    serve();
    if (done(1) != before) want(1);
  }
  EXPECT_NEAR(done(0), done(1), 2);
}

TEST_F(Sharing, NothingIsOwedForIdleTime) {
  constexpr uint64_t kCostNs = 1'000'000;
  want(add(kCostNs));
  want(add(kCostNs), 1000);
  serve_times(500);
  EXPECT_EQ(done(0), 1);
  want(0, 500);
  serve_times(100);
  EXPECT_NEAR(done(0), 51, 1) << "it was away, and shares from now on";
}

// Ten minutes that nobody else wanted.
TEST_F(Sharing, WhatNobodyElseWantedIsHeldAgainstNobody) {
  want(add(600'000'000'000), 2);
  serve();
  const size_t late = add(1000);
  want(late, 1000);
  const std::vector<size_t> order = serve_times(3);
  EXPECT_EQ(std::ranges::count(order, size_t{0}), 1)
      << "the second piece need not wait until the other has had ten minutes";
}

TEST_F(Sharing, ALongPieceIsPaidBackToThoseWhoWaited) {
  const size_t hog = add(100'000);
  const size_t other = add(1000);
  want(hog, 3);
  want(other, 1000);
  serve_times(1);
  serve_times(90);
  EXPECT_EQ(done(hog), 1);
  EXPECT_EQ(done(other), 90);
  serve_times(30);
  EXPECT_EQ(done(hog), 2);
}

// Each of them is new, and would be served before one that had much.
TEST_F(Sharing, SessionsThatComeOneAfterAnotherKeepNobodyOut) {
  const size_t first = add(50'000'000);
  want(first, 10);
  want(add(1000), 10);
  serve_times(1);
  ASSERT_EQ(done(first), 1);
  int newcomers = 0;
  while (done(first) < 2 && newcomers < 10'000) {
    want(add(1000));
    serve();
    ++newcomers;
  }
  EXPECT_LT(newcomers, 10'000);
}

TEST_F(Sharing, WorkThatComesWhileASessionIsServedIsNotLost) {
  const size_t session = add(1000);
  want(session);
  EXPECT_EQ(serve_while([&] { want(session, 2); }), session);
  EXPECT_EQ(serve(), session);
  EXPECT_EQ(serve(), session);
  EXPECT_EQ(serve(), kNobody);
}

TEST_F(Sharing, NobodyIsFarFromFairWhateverItsPieces) {
  std::mt19937_64 random(test::random_seed());
  constexpr size_t kSessions = 64;
  constexpr uint64_t kMostNs = 1'000'000;
  std::uniform_int_distribution<uint64_t> cost(1'000, kMostNs);
  for (size_t i = 0; i < kSessions; ++i) want(add(cost(random)), 1 + static_cast<int>(i % 7));
  std::vector<uint64_t> begun(kSessions);
  for (int i = 0; i < 50'000; ++i) {
    const size_t served = serve();
    ASSERT_NE(served, kNobody);
    want(served, done(served) % 3);
    want(served);
    if (i == 10'000) {
      for (size_t session = 0; session < kSessions; ++session) begun[session] = had_ns(session);
    }
  }
  uint64_t least = UINT64_MAX;
  uint64_t most = 0;
  for (size_t session = 0; session < kSessions; ++session) {
    least = std::min(least, had_ns(session) - begun[session]);
    most = std::max(most, had_ns(session) - begun[session]);
  }
  EXPECT_LE(most - least, 4 * kMostNs);
}

TEST(FairQueue, WhatWaitsGoesWithIt) {
  const auto alive = std::make_shared<int>(0);
  std::array<FairShare<Piece>, 3> shares;
  {
    FairQueue<Piece> queue;
    for (int i = 0; i < 12; ++i) {
      queue.push(shares[static_cast<size_t>(i) % 3], std::make_unique<Piece>(Piece{.alive = alive}));
    }
    EXPECT_NE(queue.pop(), nullptr);
    queue.charge(shares[0], 1);
    EXPECT_GT(alive.use_count(), 1);
  }
  EXPECT_EQ(alive.use_count(), 1);
}

// Who sends one piece after another and waits for each is served as often as one who has many waiting: what it sends while a
// piece of the other is served has waited by then.
TEST_F(Sharing, WhoCameDuringAPieceGoesBeforeItsSession) {
  const size_t many = add(1'000'000);
  const size_t one_by_one = add(1'000'000);
  want(many, 20);
  want(one_by_one);
  (void)serve_times(2);  // each was new once
  for (int i = 0; i < 8; ++i) {
    ASSERT_EQ(serve_while([&] { want(one_by_one); }), many) << i;
    ASSERT_EQ(serve(), one_by_one) << i;
  }
}

// One long piece is not held against its session for ever.
TEST_F(Sharing, ALongPieceIsPaidBackForASecondAtMost) {
  const size_t long_one = add(60'000'000'000);
  const size_t other = add(10'000'000);
  want(long_one, 2);
  want(other, 1'000);
  size_t between = 0;
  while (serve() != long_one) {
  }
  while (serve() != long_one) ++between;
  EXPECT_GE(between, 90U);
  EXPECT_LE(between, 110U);
}

}  // namespace
}  // namespace genie::node
