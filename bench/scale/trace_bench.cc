// genie-bench scale, long traces: what an operator costs whose program captures 100 of them or a million before it wants a value, and
// what memory client and node need beyond what they had, until all of them have run.
#include <ATen/ops/add.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <c10/core/InferenceMode.h>
#include <unistd.h>

#include <ctime>
#include <optional>
#include <string>

#include "bench/benches.h"
#include "bench/harness/memory.h"
#include "bench/remote/place.h"

namespace genie::bench {
namespace {

constexpr int64_t kFew = 100;
constexpr int64_t kSome = 10'000;
constexpr int64_t kMany = 1'000'000;

uint64_t thread_ns() {
  timespec spent{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent);
  return static_cast<uint64_t>(spent.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(spent.tv_nsec);
}

// Seven operators, again and again: no two flushes at the limit of records begin at the same one.
class Program {
 public:
  explicit Program(RemotePlace& place) : place_(place) {
    const c10::InferenceMode inference;
    x_ = at::randn({4, 4}).to(place.device());
    weight_ = at::randn({4, 4}).mul_(0.1).to(place.device());
  }
  // Captures `ops` operators whose result is wanted. Of the calls alone: nanoseconds for each, of this thread's own time. A million take
  // long enough for neighbours to want the core meanwhile.
  double capture_ns(int64_t ops) {
    const c10::InferenceMode inference;
    at::Tensor y = x_;
    const uint64_t begin = thread_ns();
    for (int64_t i = 0; i < ops; ++i) {
      switch (i % 7) {
        case 0: y = at::mm(y, weight_); break;
        case 1: y = at::add(y, x_); break;
        case 3: y = at::relu(y); break;
        case 5: y = at::add(y, weight_); break;
        default: y = at::mul(y, x_); break;
      }
    }
    const uint64_t end = thread_ns();
    place_.session().synchronize();
    return static_cast<double>(end - begin) / static_cast<double>(ops);
  }

 private:
  RemotePlace& place_;
  at::Tensor x_, weight_;
};

void measure_cost(Harness& harness, RemotePlace& place) {
  constexpr double kFlat = 1.1;
  for (const int64_t ops : {kFew, kSome, kMany}) {
    const Json params = {{"ops", ops}, {"transport", place.transport()}};
    if (!harness.wants("scale.capture_ns_per_op", params)) continue;
    Program program(place);
    const auto target = ops == kFew ? std::nullopt : std::optional(kFlat);
    auto row = harness.row({.name = "scale.capture_ns_per_op", .params = params, .unit = "ns", .target = target});
    row.ours([&] { return program.capture_ns(ops); });
    // As often as takes as long: the cost of few operators is that of many bursts.
    const auto few = [&](Samples& samples) {
      for (int64_t done = 0; done < kSome; done += kFew) samples.add(program.capture_ns(kFew));
    };
    if (ops == kFew) {
      row.ours(few);
    } else {
      row.peer("100 operators", few);
    }
    row.runs(harness.full_or_quick(9, 3)).measure();
  }
}

// What client and node together came to have, at the most, while so many operators were captured and run.
double growth_mb(RemotePlace& place, int64_t ops) {
  Program program(place);
  (void)program.capture_ns(kSome);
  const std::vector<pid_t> processes{::getpid(), place.node_process()};
  const uint64_t before = pss_bytes(processes[0]) + pss_bytes(processes[1]);
  PeakMemory peak(processes);
  (void)program.capture_ns(ops);
  return static_cast<double>(peak.stop() - before) / kMegabyte;
}

void measure_memory(Harness& harness, const std::string& transport) {
  const Json params = {{"ops", kMany}, {"transport", transport}};
  if (!harness.wants("scale.flush_memory", params)) return;
  // Bounded: ten times as many operators need no more, but for what the allocators hold back.
  constexpr double kAllowanceMb = 16;
  const auto growth = [&](int64_t ops) {
    RemotePlace fresh(transport);
    return growth_mb(fresh, ops);
  };
  harness.row({.name = "scale.flush_memory", .params = params, .unit = "MB", .target = 1.0, .allowance = kAllowanceMb})
      .ours([&] { return growth(kMany); })
      .peer("100,000 operators", [&] { return growth(kMany / 10); })
      .warmup(0)
      .runs(harness.full_or_quick(5, 2))
      .measure();
}

void run_traces(Harness& harness) {
  for (const std::string& transport : harness.transports_or({"shm"})) {
    measure_memory(harness, transport);
    RemotePlace place(transport);
    measure_cost(harness, place);
  }
}

const Registration kTraces("scale", run_traces);

}  // namespace
}  // namespace genie::bench
