// genie-bench invoke: the round trip of one step that has next to nothing to do: one operator on one number, and its 4 bytes
// fetched. Capture, message, the node's work, the answer and the tensor that .cpu() returns are all inside.
#include <ATen/ops/add.h>
#include <ATen/ops/ones.h>
#include <c10/core/InferenceMode.h>

#include <string>

#include "bench/benches.h"
#include "bench/remote/place.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

constexpr int kWarmUp = 50;

void measure(Harness& harness, const std::string& transport) {
  const Json params = {{"transport", transport}, {"bytes", 4}};
  if (!harness.wants("invoke.round_trip", params)) return;
  RemotePlace place(transport, Cores::kShared);
  const c10::InferenceMode inference;
  const at::Tensor remote = at::ones({1}).to(place.device());
  const int steps = harness.full_or_quick(2'000, 300);
  for (int i = 0; i < kWarmUp; ++i) at::add(remote, remote).cpu();
  harness.row({.name = "invoke.round_trip", .params = params, .unit = "us"})
      .ours([&](Samples& samples) {
        for (int i = 0; i < steps; ++i) {
          const uint64_t begin = now_ns();
          const at::Tensor fetched = at::add(remote, remote).cpu();
          samples.add(static_cast<double>(now_ns() - begin) / 1e3);
        }
      })
      .runs(3)
      .measure();
}

void run_invoke(Harness& harness) {
  for (const std::string& transport : harness.transports_or({"shm", "embedded"})) measure(harness, transport);
}

const Registration kInvoke("invoke", run_invoke);

}  // namespace
}  // namespace genie::bench
