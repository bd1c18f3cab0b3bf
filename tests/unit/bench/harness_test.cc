#include "bench/harness/harness.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "bench/benches.h"
#include "bench/harness/plot.h"
#include "bench/harness/threads.h"
#include "bench/transfer/sizes.h"

namespace genie::bench {
namespace {

TEST(Samples, QuantilesAreOfTheNearestRank) {
  Samples samples;
  EXPECT_EQ(samples.median(), 0);
  for (int i = 100; i >= 1; --i) samples.add(i);
  EXPECT_EQ(samples.median(), 50);
  EXPECT_EQ(samples.quantile(0.99), 99);
  EXPECT_EQ(samples.quantile(1.0), 100);
  Samples one;
  one.add(7);
  EXPECT_EQ(one.quantile(0.99), 7);
}

TEST(Harness, NamedModelsLeaveOtherRowsOut) {
  const Harness harness("demo", {.models = {"gpt2", "moe"}});
  EXPECT_TRUE(harness.wants("forward.latency", {{"model", "moe"}}));
  EXPECT_FALSE(harness.wants("forward.latency", {{"model", "bert"}}));
  EXPECT_FALSE(harness.wants("queue.spsc", {{"bytes", 8}}));
  EXPECT_TRUE(Harness("demo", {}).wants("forward.latency", {{"model", "bert"}}));
}

TEST(Harness, AlternatesOursAndPeersAndComparesMedians) {
  Harness harness("demo", {});
  std::string order;
  auto row = harness.row(
      {.name = "demo.row", .params = {{"bytes", 8}}, .unit = "Mops/s", .better = Better::kHigher, .target = 2.0});
  row.ours([&] {
    order += 'o';
    return 6.0;
  });
  row.peer("slow", [&] {
    order += 's';
    return 2.0;
  });
  row.peer("fast", [&] {
    order += 'f';
    return 4.0;
  });
  EXPECT_EQ(row.runs(2).measure(), 6.0);
  EXPECT_EQ(order,
            "osf"
            "osf"
            "fso")
      << "one warm-up round, then alternating directions";

  const Json report = harness.report();
  EXPECT_EQ(report["bench"], "demo");
  EXPECT_FALSE(report["commit"].get<std::string>().empty());
  ASSERT_EQ(report["rows"].size(), 2U);
  const Json& slow = report["rows"][0];
  EXPECT_EQ(slow["name"], "demo.row");
  EXPECT_EQ(slow["params"]["bytes"], 8);
  EXPECT_EQ(slow["unit"], "Mops/s");
  EXPECT_EQ(slow["median"], 6.0);
  EXPECT_EQ(slow["runs"], 2);
  EXPECT_EQ(slow["peer"], "slow");
  EXPECT_EQ(slow["peer_median"], 2.0);
  EXPECT_EQ(slow["ratio"], 3.0);
  EXPECT_EQ(slow["better"], "higher");
  EXPECT_EQ(slow["target"], 2.0);
  EXPECT_EQ(slow["met"], true);
  EXPECT_EQ(report["rows"][1]["met"], false) << "1.5 times as fast is not twice as fast";
}

TEST(Harness, LowerIsBetterWhereTheRowSaysSo) {
  Harness harness("demo", {});
  harness.row({.name = "a", .better = Better::kLower, .target = 0.5})
      .ours([] { return 4.0; })
      .peer("p", [] { return 8.0; })
      .measure();
  harness.row({.name = "b", .better = Better::kLower, .target = 0.5})
      .ours([] { return 5.0; })
      .peer("p", [] { return 8.0; })
      .measure();
  EXPECT_EQ(harness.report()["rows"][0]["met"], true);
  EXPECT_EQ(harness.report()["rows"][1]["met"], false);
}

TEST(Harness, ARowWithoutPeerHasNullsAndMayHaveAnAbsoluteTarget) {
  Harness harness("demo", {});
  harness.row({.name = "plain", .unit = "ns"}).ours([] { return 1.0; }).measure();
  harness.row({.name = "absolute", .unit = "ns", .target = 2.0, .target_of = TargetOf::kMedian})
      .ours([] { return 3.0; })
      .measure();
  const Json rows = harness.report()["rows"];
  for (const char* key : {"peer", "peer_median", "ratio", "target", "met"}) EXPECT_TRUE(rows[0][key].is_null()) << key;
  EXPECT_EQ(rows[1]["met"], false);
}

TEST(Harness, ATargetMayBoundTheDifferenceToThePeer) {
  Harness harness("demo", {});
  for (const double ours : {129.0, 131.0}) {
    harness.row({.name = "start", .unit = "ms", .target = 30.0, .target_of = TargetOf::kDifference})
        .ours([ours] { return ours; })
        .peer("p", [] { return 100.0; })
        .measure();
  }
  const Json rows = harness.report()["rows"];
  EXPECT_EQ(rows[0]["met"], true);
  EXPECT_EQ(rows[1]["met"], false);
  EXPECT_EQ(rows[0]["target_of"], "difference");
}

TEST(Harness, ATargetMayAllowSomethingBeyondTheRatio) {
  Harness harness("demo", {});
  for (const double ours : {1199.0, 1201.0}) {
    harness.row({.name = "memory", .unit = "MB", .target = 1.1, .allowance = 100})
        .ours([ours] { return ours; })
        .peer("p", [] { return 1000.0; })
        .measure();
  }
  const Json rows = harness.report()["rows"];
  EXPECT_EQ(rows[0]["met"], true);
  EXPECT_EQ(rows[1]["met"], false);
  EXPECT_EQ(rows[0]["ratio"], 1.199) << "the allowance is the target's, not the ratio's";
}

TEST(Harness, ATargetMayBoundTheBestRun) {
  Harness harness("demo", {});
  for (const Better better : {Better::kLower, Better::kHigher}) {
    harness.row({.name = "best", .better = better, .target = 5.0, .target_of = TargetOf::kBest})
        .ours([](Samples& samples) {
          for (const double value : {4.0, 6.0, 7.0}) samples.add(value);
        })
        .measure();
  }
  harness.row({.name = "missed", .target = 3.0, .target_of = TargetOf::kBest}).ours([] { return 4.0; }).measure();
  const Json rows = harness.report()["rows"];
  EXPECT_EQ(rows[0]["met"], true);
  EXPECT_EQ(rows[0]["best"], 4.0);
  EXPECT_EQ(rows[1]["met"], true);
  EXPECT_EQ(rows[1]["best"], 7.0);
  EXPECT_EQ(rows[2]["met"], false);
}

TEST(Harness, ARunMayAddManySamples) {
  Harness harness("demo", {});
  harness.row({.name = "latency"})
      .ours([](Samples& samples) {
        for (int i = 1; i <= 100; ++i) samples.add(i);
      })
      .runs(3)
      .measure();
  const Json row = harness.report()["rows"][0];
  EXPECT_EQ(row["runs"], 3);
  EXPECT_EQ(row["samples"], 300);
  EXPECT_EQ(row["median"], 50);
  EXPECT_EQ(row["p99"], 99);
}

TEST(Harness, FilterLooksAtNameAndParamsAndSkipsTheRun) {
  Harness harness("demo", {.quick = true, .filter = "op=write"});
  bool ran = false;
  EXPECT_FALSE(harness.row({.name = "transfer", .params = {{"op", "read"}}})
                   .ours([&] {
                     ran = true;
                     return 1.0;
                   })
                   .measure());
  EXPECT_FALSE(ran);
  EXPECT_EQ(harness.row_count(), 0U);
  EXPECT_TRUE(harness.wants("transfer", {{"bytes", 64}, {"op", "write"}}));
  EXPECT_TRUE(harness.row({.name = "transfer", .params = {{"op", "write"}}}).ours([] { return 1.0; }).measure());
}

TEST(Harness, ARunThatThrowsFailsItsRowOnly) {
  Harness harness("demo", {});
  EXPECT_FALSE(harness.row({.name = "bad"}).ours([]() -> double { throw std::runtime_error("no device"); }).measure());
  EXPECT_TRUE(harness.failed());
  EXPECT_TRUE(harness.row({.name = "good"}).ours([] { return 1.0; }).measure());
  EXPECT_EQ(harness.row_count(), 1U);
  EXPECT_NE(harness.report()["notes"][0].get<std::string>().find("no device"), std::string::npos);
}

void add_first(Harness& harness) { harness.note("first"); }
void add_second(Harness& harness) { harness.note("second"); }
const Registration kFirst("registered", add_first);
const Registration kSecond("registered", add_second);

TEST(Registration, FindsEveryFileOfABench) {
  EXPECT_EQ(Registration::find("missing"), nullptr);
  Harness harness("registered", {});
  for (const auto* bench = Registration::find("registered"); bench != nullptr; bench = bench->next_of_name())
    bench->run(harness);
  EXPECT_EQ(harness.report()["notes"].size(), 2U);
}

TEST(RunOnCores, RunsAllAndPassesAnExceptionOn) {
  std::atomic<int> runs{0};
  const std::array<std::function<void()>, 3> good = {[&] { ++runs; }, [&] { ++runs; }, [&] { ++runs; }};
  EXPECT_GT(run_on_cores(good), 0U);
  EXPECT_EQ(runs, 3);
  const std::array<std::function<void()>, 2> bad = {[&] { ++runs; }, [] { throw std::runtime_error("lost"); }};
  EXPECT_THROW(run_on_cores(bad), std::runtime_error);
}

TEST(Sizes, RangesAndListsAreRead) {
  EXPECT_EQ(parse_sizes("8..1K"), (std::vector<uint64_t>{8, 64, 512, 1024}));
  EXPECT_EQ(parse_sizes("8..1G").size(), 10U);
  EXPECT_EQ(parse_sizes("8..1G").back(), uint64_t{1} << 30);
  EXPECT_EQ(parse_sizes("64..64"), (std::vector<uint64_t>{64}));
  EXPECT_EQ(parse_sizes("4K,64,1M"), (std::vector<uint64_t>{4096, 64, 1 << 20}));
  for (const char* wrong : {"", "0", "-8", "8..", "..8", "64..8", "8KB", "1T", "8,,9", "8,", "99999999999G"}) {
    EXPECT_TRUE(parse_sizes(wrong).empty()) << wrong;
  }
}

TEST(Plot, HasAChartForEachGroupAndALineForEachParty) {
  Harness harness("demo", {});
  for (const size_t bytes : {8, 64}) {
    harness.row({.name = "demo.rate", .params = {{"op", "a<b"}, {"bytes", bytes}}, .unit = "GB/s"})
        .ours([] { return 1.0; })
        .peer("memcpy", [] { return 2.0; })
        .peer("pipe", [] { return 3.0; })
        .measure();
  }
  harness.row({.name = "demo.latency", .params = {{"bytes", 8}}, .unit = "us"}).ours([] { return 1.0; }).measure();
  harness.row({.name = "demo.other", .unit = "us"}).ours([] { return 1.0; }).measure();
  const std::string svg = plot_svg(harness.report());
  const auto count = [&](const std::string& what) {
    size_t found = 0;
    for (size_t at = svg.find(what); at != std::string::npos; at = svg.find(what, at + 1)) ++found;
    return found;
  };
  EXPECT_EQ(count("<g transform"), 2U) << "a row without bytes has no chart";
  EXPECT_EQ(count("<polyline"), 4U);
  EXPECT_EQ(count("<circle"), 7U);
  EXPECT_EQ(count("demo.rate op=a&lt;b, GB/s"), 1U) << svg;
  EXPECT_EQ(plot_svg(Harness("empty", {}).report()), "");
}

TEST(Plot, WithoutBytesHasABarForEachRatio) {
  Harness harness("demo", {});
  const auto measure = [&](const char* model, double ours) {
    harness.row({.name = "demo.latency", .params = {{"model", model}}, .unit = "ms"})
        .ours([ours] { return ours; })
        .peer("eager", [] { return 2.0; })
        .measure();
  };
  measure("a<b", 1.0);
  measure("slow", 50.0);
  harness.row({.name = "demo.alone", .unit = "us"}).ours([] { return 1.0; }).measure();
  const std::string svg = plot_svg(harness.report());
  EXPECT_NE(svg.find("demo.latency model=a&lt;b / eager"), std::string::npos) << svg;
  EXPECT_NE(svg.find(">0.50<"), std::string::npos) << svg;
  EXPECT_NE(svg.find(">25.00<"), std::string::npos) << "a bar that is cut keeps its number";
  EXPECT_EQ(svg.find("demo.alone"), std::string::npos);
}

}  // namespace
}  // namespace genie::bench
