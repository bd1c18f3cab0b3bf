// What a node holds of a session is bounded; a program that has more goes on.
#include <atomic>
#include <thread>
#include <vector>

#include "frontend/capture/registry.h"
#include "frontend/capture/session_core.h"
#include "frontend/capture/template_cache.h"
#include "tests/frontend/session_fixture.h"

namespace {

using genie::frontend::KnownTemplate;
using genie::frontend::TemplateCache;
using genie::frontend::TemplateKey;
using genie::test::remote_mode;
using Limits = genie::test::SessionTest;

TemplateKey key(uint64_t number) { return {number, 0}; }
KnownTemplate known(uint64_t id, uint64_t bytes) { return {.id = id, .defaults = {}, .bytes = bytes}; }

TEST(TemplateCacheTest, TheLeastRecentlyUsedGoesFirst) {
  TemplateCache cache(3, 1000);
  for (uint64_t i = 1; i <= 3; ++i) {
    EXPECT_TRUE(cache.make_room(10).empty());
    cache.insert(key(i), known(i, 10));
  }
  ASSERT_NE(cache.find(key(1)), nullptr);
  EXPECT_EQ(cache.make_room(10), (std::vector<uint64_t>{2}));
  EXPECT_EQ(cache.find(key(2)), nullptr);
  // The node may not have heard of it: said again until a registration succeeds.
  EXPECT_EQ(cache.make_room(10), (std::vector<uint64_t>{2}));
  cache.insert(key(4), known(4, 10));
  EXPECT_EQ(cache.make_room(10), (std::vector<uint64_t>{3}));
  EXPECT_EQ(cache.forgotten(), 2U);
}

TEST(TemplateCacheTest, BytesAreBoundedToo) {
  TemplateCache cache(100, 1000);
  for (uint64_t i = 1; i <= 4; ++i) cache.insert(key(i), known(i, 250));
  EXPECT_EQ(cache.make_room(500), (std::vector<uint64_t>{1, 2}));
  cache.insert(key(5), known(5, 500));
  // Larger than all together: everything goes, and the node says no.
  EXPECT_EQ(cache.make_room(5000).size(), 3U);
  EXPECT_EQ(cache.size(), 0U);
}

// The k-th of many programs that all have different code.
at::Tensor program(const at::Tensor& x, int k) {
  at::Tensor y = x;
  for (int i = 0; i <= k; ++i) y = (i & k) != 0 ? y.sin() : y.cos();
  return y + k;
}

TEST_F(Limits, MoreTemplatesThanTheNodeHolds) {
  if (!remote_mode()) GTEST_SKIP() << "an embedded node's limit is not configured";
  constexpr int kHeld = 4;
  constexpr int kPrograms = 3 * kHeld;
  start({"--max-templates", std::to_string(kHeld)});
  const auto x = torch::randn({8});
  const auto remote = x.to(device());
  const auto before = session->stats();
  // From several threads: what one wants forgotten may be in flight for another, and may not go before it ran.
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 3 * kPrograms; ++i) {
        const int k = (i * (t + 1)) % kPrograms;
        if (!torch::equal(program(remote, k).cpu(), program(x, k))) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  const auto after = session->stats();
  EXPECT_GE(after.templates_forgotten - before.templates_forgotten, 2U * kPrograms);
  EXPECT_TRUE(node->eventually([](const genie::control::NodeReport& report) { return report.templates <= kHeld; }));
  // What fits is kept: the same few over and over register nothing.
  for (int k = 0; k < kHeld; ++k) (void)program(remote, k).cpu();
  const auto warm = session->stats();
  for (int round = 0; round < 3; ++round) {
    for (int k = 0; k < kHeld; ++k) (void)program(remote, k).cpu();
  }
  EXPECT_EQ(session->stats().templates_registered, warm.templates_registered);
}

// Of two programs that differ in one operator, the template of one is not that of the other, whatever their fingerprints.
TEST_F(Limits, TheDebugModeTrustsNoFingerprint) {
  using namespace genie::frontend;
  const auto x = torch::ones({4}).to(device());
  session->synchronize();
  SessionCore& core = core_of(device().index());
  FragmentBuilder builder;
  const auto template_of = [&](const at::Tensor& result) {
    const Segment& segment = core.current_stream().open;
    const FragmentPlan& plan = builder.plan(segment);
    KnownTemplate made{.id = 7, .defaults = plan.numbers_of(segment), .bytes = 0};
    made.serialized = builder.serialize(segment, made.defaults);
    EXPECT_TRUE(result.defined());
    return made;
  };
  KnownTemplate of_sin;
  {
    const auto sin = x.add(3).sin();
    of_sin = template_of(sin);
  }
  session->synchronize();
  {
    const auto again = x.add(5).sin();  // another number: the same template
    (void)template_of(again);
    EXPECT_TRUE(check_template(builder, core.current_stream().open, of_sin).ok());
  }
  session->synchronize();
  const auto cos = x.add(3).cos();
  (void)template_of(cos);
  const genie::Status caught = check_template(builder, core.current_stream().open, of_sin);
  EXPECT_EQ(caught.code(), genie::Errc::kInternal);
  EXPECT_NE(caught.text().find("template 7"), std::string_view::npos) << caught.to_string();
  of_sin.serialized.clear();  // registered before the mode was on
  EXPECT_TRUE(check_template(builder, core.current_stream().open, of_sin).ok());
}

// Before the program wants a value: what it captured is sent as it goes, so that neither side has more than some flushes of it.
TEST_F(Limits, AMillionOperators) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr uint64_t kOperators = 100'000;
#else
  constexpr uint64_t kOperators = 1'000'000;
#endif
  constexpr uint64_t kRecordsMost = 8192;
  constexpr uint64_t kInFlightMost = 256;
  constexpr uint64_t kStep = kOperators / 40;
  const c10::InferenceMode inference;
  const auto one = torch::ones({3}, torch::kLong).to(device());
  auto sum = torch::zeros({3}, torch::kLong).to(device());
  const auto before = session->stats();
  const auto sent = [](const genie::Stats& stats) {
    uint64_t count = 0;
    for (const auto& [op, executed] : stats.executed_by_op) count += executed;
    return count;
  };
  for (uint64_t captured = 0; captured < kOperators;) {
    for (uint64_t i = 0; i < kStep; ++i) sum = sum + one;
    captured += kStep;
    const auto now = session->stats();
    ASSERT_LE(captured, sent(now) - sent(before) + kRecordsMost) << "operators that wait on the client";
    if (!remote_mode()) continue;
    const genie::control::NodeReport report = node->report();
    ASSERT_LE(report.in_flight, kInFlightMost);
    // One lives on from each submission until that is known to have run.
    ASSERT_LE(report.storages, kInFlightMost + 4) << "results that nobody can see any more";
  }
  EXPECT_TRUE(torch::equal(sum.cpu(), torch::full({3}, static_cast<int64_t>(kOperators), torch::kLong)));
  const auto after = session->stats();
  EXPECT_EQ(after.executed_ops - before.executed_ops, kOperators);
  EXPECT_GE(after.flushes - before.flushes, kOperators / kRecordsMost);
  // The first, those in the middle, the last.
  EXPECT_LE(after.templates_registered - before.templates_registered, 3U);
  if (remote_mode()) {
    (void)(sum + one).cpu();  // takes the last frees along
    EXPECT_TRUE(node->eventually([](const genie::control::NodeReport& report) { return report.storages <= 4; }));
  }
}

at::Generator new_generator(torch::Device device) {
  return at::globalContext().getAcceleratorHooksInterface(device.type()).getNewGenerator(device.index());
}

at::Tensor drawn_here(uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  return torch::rand({3}, generator, torch::kFloat);
}

// A node holds 1,024 of a session.
TEST_F(Limits, MoreGeneratorsThanTheNodeHolds) {
  constexpr uint64_t kMany = 1200;
  uint64_t registered = 0;
  for (uint64_t seed = 0; seed < kMany; ++seed) {
    auto generator = new_generator(device());
    generator.set_current_seed(seed);
    const auto drawn = torch::rand({3}, generator, torch::TensorOptions(device()));
    ASSERT_TRUE(torch::equal(drawn.cpu(), drawn_here(seed))) << seed;
    if (seed == 8) registered = session->stats().templates_registered;
  }
  EXPECT_EQ(session->stats().templates_registered, registered) << "one generator's step is the next one's";
}

TEST_F(Limits, AGeneratorMayGoBeforeItsRecordsRan) {
  at::Tensor first;
  at::Tensor second;
  {
    auto generator = new_generator(device());
    generator.set_current_seed(1);
    first = torch::rand({3}, generator, torch::TensorOptions(device()));
  }
  // Another thread's flush takes frees along.
  std::thread([&] { (void)torch::ones({2}, device()).cpu(); }).join();
  {
    auto generator = new_generator(device());
    generator.set_current_seed(2);
    second = torch::rand({3}, generator, torch::TensorOptions(device()));
  }
  EXPECT_TRUE(torch::equal(first.cpu(), drawn_here(1)));
  EXPECT_TRUE(torch::equal(second.cpu(), drawn_here(2)));
}

}  // namespace
