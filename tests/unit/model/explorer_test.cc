// The explorer on programs whose allowed outcomes are known from the C++ standard and the literature (litmus tests).
// An explorer that misses an allowed outcome would miss bugs; one that adds a forbidden one would raise false alarms.
#include "tests/unit/model/explorer.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "tests/unit/model/model_memory.h"

namespace genie::model {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kRelease = std::memory_order_release;
constexpr auto kAcqRel = std::memory_order_acq_rel;

using Outcome = std::pair<uint64_t, uint64_t>;

struct Shared {
  ModelMemory::Atomic<uint64_t> x{0};
  ModelMemory::Atomic<uint64_t> y{0};
  ModelMemory::Cell<uint64_t> cell;
  uint64_t first = 0;  // results, by thread 0 and thread 1
  uint64_t second = 0;
};

using Body = std::function<void(Shared&)>;

class Litmus final : public Program {
 public:
  Litmus(const Body& first, const Body& second, std::set<Outcome>& outcomes)
      : bodies_{&first, &second}, outcomes_(outcomes) {}
  void thread(size_t index) override { (*bodies_[index])(shared_); }
  std::string check() override {
    outcomes_.insert({shared_.first, shared_.second});
    return {};
  }

 private:
  std::array<const Body*, 2> bodies_;
  std::set<Outcome>& outcomes_;
  Shared shared_;
};

std::set<Outcome> outcomes(const Body& first, const Body& second, std::string* violation = nullptr) {
  std::set<Outcome> found;
  const Exploration result = explore([&] { return std::make_unique<Litmus>(first, second, found); });
  EXPECT_EQ(result.endless_executions, 0U);
  if (violation != nullptr) {
    *violation = result.violation;
  } else {
    EXPECT_EQ(result.violation, "");
  }
  return found;
}

Body message_writer(std::memory_order order) {
  return [order](Shared& s) {
    s.x.store(1, kRelaxed);
    s.y.store(1, order);
  };
}
Body message_reader(std::memory_order order) {
  return [order](Shared& s) {
    s.first = s.y.load(order);
    s.second = s.x.load(kRelaxed);
  };
}

TEST(Explorer, MessagePassingNeedsBothReleaseAndAcquire) {
  const Outcome stale{1, 0};
  const std::set<Outcome> all{{0, 0}, {0, 1}, {1, 0}, {1, 1}};
  EXPECT_FALSE(outcomes(message_writer(kRelease), message_reader(kAcquire)).contains(stale));
  EXPECT_EQ(outcomes(message_writer(kRelaxed), message_reader(kAcquire)), all);
  EXPECT_EQ(outcomes(message_writer(kRelease), message_reader(kRelaxed)), all);
}

TEST(Explorer, StoreBufferingIsAllowedEvenWithReleaseAndAcquire) {
  const auto found = outcomes(
      [](Shared& s) {
        s.x.store(1, kRelease);
        s.first = s.y.load(kAcquire);
      },
      [](Shared& s) {
        s.y.store(1, kRelease);
        s.second = s.x.load(kAcquire);
      });
  EXPECT_EQ(found, (std::set<Outcome>{{0, 0}, {0, 1}, {1, 0}, {1, 1}}));
}

TEST(Explorer, LoadBufferingIsNot) {
  const auto found = outcomes(
      [](Shared& s) {
        s.first = s.x.load(kRelaxed);
        s.y.store(1, kRelaxed);
      },
      [](Shared& s) {
        s.second = s.y.load(kRelaxed);
        s.x.store(1, kRelaxed);
      });
  EXPECT_EQ(found, (std::set<Outcome>{{0, 0}, {0, 1}, {1, 0}}));
}

TEST(Explorer, ALocationNeverGoesBack) {
  const auto found = outcomes(
      [](Shared& s) {
        s.x.store(1, kRelaxed);
        s.x.store(2, kRelaxed);
      },
      [](Shared& s) {
        s.first = s.x.load(kRelaxed);
        s.second = s.x.load(kRelaxed);
      });
  EXPECT_EQ(found, (std::set<Outcome>{{0, 0}, {0, 1}, {0, 2}, {1, 1}, {1, 2}, {2, 2}}));
}

// 2+2W: each location's order may be the opposite of what the schedule suggests.
TEST(Explorer, AStoreMayComeBeforeOneThatItsThreadDoesNotKnow) {
  const auto found = outcomes(
      [](Shared& s) {
        s.x.store(1, kRelaxed);
        s.y.store(2, kRelaxed);
        s.first = s.y.load(kRelaxed);
      },
      [](Shared& s) {
        s.y.store(1, kRelaxed);
        s.x.store(2, kRelaxed);
        s.second = s.x.load(kRelaxed);
      });
  EXPECT_TRUE(found.contains({1, 1})) << "each thread's second store lost to the other's first one";
}

TEST(Explorer, ReadModifyWritesNeverLoseOne) {
  const Body increment = [](Shared& s) {
    uint64_t seen = s.x.load(kRelaxed);
    while (!s.x.compare_exchange_weak(seen, seen + 1, kRelaxed, kRelaxed)) {
    }
    (current_thread() == 0 ? s.first : s.second) = seen;
  };
  EXPECT_EQ(outcomes(increment, increment), (std::set<Outcome>{{0, 1}, {1, 0}}));
}

TEST(Explorer, AReadModifyWriteContinuesTheReleaseSequence) {
  const auto found = [](std::memory_order order) {
    return outcomes(
        [](Shared& s) {
          s.x.store(1, kRelaxed);
          s.y.store(1, kRelease);
        },
        [order](Shared& s) {
          uint64_t seen = 1;
          if (!s.y.compare_exchange_weak(seen, 2, order, kRelaxed)) return;
          if (s.y.load(kAcquire) != 2) return;
          s.first = 2;
          s.second = s.x.load(kRelaxed);
        });
  };
  // Reading one's own exchange, which carries on the first thread's release, is an acquire of that release.
  EXPECT_FALSE(found(kRelaxed).contains({2, 0}));
  EXPECT_TRUE(found(kRelaxed).contains({2, 1}));
  EXPECT_FALSE(found(kAcqRel).contains({2, 0}));
}

TEST(Explorer, WeakExchangesMayFailForNoReason) {
  const auto found = outcomes(
      [](Shared& s) {
        uint64_t seen = 0;
        s.first = s.x.compare_exchange_weak(seen, 1, kRelaxed, kRelaxed) ? 1 : 2 + seen;
      },
      [](Shared&) {});
  EXPECT_EQ(found, (std::set<Outcome>{{1, 0}, {2, 0}}));
}

Body guarded_writer(std::memory_order order) {
  return [order](Shared& s) {
    ModelMemory::write(s.cell, uint64_t{7});
    s.x.store(1, order);
  };
}
Body guarded_reader(std::memory_order order) {
  return [order](Shared& s) {
    if (s.x.load(order) == 1) s.second = ModelMemory::read(s.cell);
  };
}

TEST(Explorer, FindsDataRacesByHappensBefore) {
  std::string violation;
  EXPECT_EQ(outcomes(guarded_writer(kRelease), guarded_reader(kAcquire)), (std::set<Outcome>{{0, 0}, {0, 7}}));
  outcomes(guarded_writer(kRelaxed), guarded_reader(kAcquire), &violation);
  EXPECT_NE(violation.find("data race"), std::string::npos) << violation;
  outcomes(guarded_writer(kRelease), guarded_reader(kRelaxed), &violation);
  EXPECT_NE(violation.find("data race"), std::string::npos) << violation;
  // Also when the guard itself was passed in the right order of time.
  outcomes([](Shared& s) { ModelMemory::write(s.cell, uint64_t{1}); },
           [](Shared& s) { ModelMemory::write(s.cell, uint64_t{2}); }, &violation);
  EXPECT_NE(violation.find("data race"), std::string::npos) << violation;
  // Reads of both are no race.
  outcomes([](Shared& s) { ModelMemory::read(s.cell); }, [](Shared& s) { ModelMemory::read(s.cell); });
}

TEST(Explorer, GivesUpOnWhatNeverEnds) {
  std::set<Outcome> found;
  const Body spin = [](Shared& s) {
    while (s.x.load(kRelaxed) == 0) {
    }
  };
  const Body nothing = [](Shared&) {};
  const Exploration result = explore([&] { return std::make_unique<Litmus>(spin, nothing, found); });
  EXPECT_GT(result.endless_executions, 0U);
  EXPECT_EQ(result.executions, 0U);
}

TEST(Explorer, MovesPlainAccessesBehindTheNextStoreWhereTheMutationSaysSo) {
  std::set<Outcome> found;
  const Body writer = guarded_writer(kRelease);
  const Body reader = guarded_reader(kAcquire);
  const auto make = [&] { return std::make_unique<Litmus>(writer, reader, found); };
  EXPECT_EQ(explore(make).violation, "");
  EXPECT_NE(explore(make, {.write_after_store = true}).violation, "");
  // Hand-back: the reader's store allows the writer's second write.
  const Body giver = [](Shared& s) {
    if (s.y.load(kAcquire) == 1) ModelMemory::write(s.cell, uint64_t{8});
  };
  const Body taker = [](Shared& s) {
    s.second = ModelMemory::read(s.cell);
    s.y.store(1, kRelease);
  };
  const auto hand_back = [&] { return std::make_unique<Litmus>(giver, taker, found); };
  EXPECT_EQ(explore(hand_back).violation, "");
  EXPECT_NE(explore(hand_back, {.read_after_store = true}).violation, "");
}

}  // namespace
}  // namespace genie::model
