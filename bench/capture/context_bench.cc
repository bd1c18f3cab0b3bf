// genie-bench capture, the context style: a factory whose device the capture decides.
#include <ATen/Parallel.h>
#include <ATen/ops/ones.h>
#include <genie/genie.h>

#include <optional>

#include "bench/benches.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

constexpr int kBurst = 128;

template <class Factory>
double burst_ns(const Factory& factory) {
  const uint64_t begin = now_ns();
  for (int i = 0; i < kBurst; ++i) factory();
  return static_cast<double>(now_ns() - begin) / kBurst;
}

// at::ones in a capture, beside the same with the device named, and beside eager. What was captured is sent between bursts.
void measure_factory(Harness& harness, const Session& session) {
  const size_t runs = harness.full_or_quick<size_t>(101, 15);
  const auto captured = [&session] {
    std::optional<Capture> capture(std::in_place, session.device());
    const double ns = burst_ns([] { at::ones({4, 4}); });
    capture.reset();
    session.synchronize();
    return ns;
  };
  const auto in_device_style = [&session] {
    const auto options = at::TensorOptions(session.device());
    const double ns = burst_ns([&] { at::ones({4, 4}, options); });
    session.synchronize();
    return ns;
  };
  constexpr double kMostBeyondNs = 100;
  harness
      .row({.name = "capture.context_factory",
            .params = {{"op", "ones"}},
            .unit = "ns",
            .target = kMostBeyondNs,
            .target_of = TargetOf::kDifference})
      .ours(captured)
      .peer("device", in_device_style)
      .warmup(3)
      .runs(runs)
      .measure();
  harness.row({.name = "capture.context_factory", .params = {{"op", "ones"}}, .unit = "ns"})
      .ours(captured)
      .peer("eager", [] { return burst_ns([] {
                            at::ones({4, 4});
                          }); })
      .warmup(3)
      .runs(runs)
      .measure();
}

void run_context(Harness& harness) {
  at::set_num_threads(1);
  const Session session = Session::connect("embedded:");
  measure_factory(harness, session);
}

const Registration kContext("capture", run_context);

}  // namespace
}  // namespace genie::bench
