// genie-bench invoke: the round trip of one step that has next to nothing to do: one operator on one number, and its 4 bytes
// fetched. Capture, message, the node's work, the answer and the tensor that .cpu() returns are all inside.
#include <ATen/Parallel.h>
#include <ATen/ops/add.h>
#include <ATen/ops/ones.h>
#include <c10/core/InferenceMode.h>
#include <genie/genie.h>

#include <optional>
#include <string>

#include "bench/benches.h"
#include "bench/harness/node_process.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

constexpr int kWarmUp = 50;

void measure(Harness& harness, const std::string& transport) {
  const Json params = {{"transport", transport}, {"bytes", 4}};
  if (!harness.wants("invoke.round_trip", params)) return;
  std::optional<NodeProcess> node;
  if (transport == "shm") node.emplace(1);
  const Session session = Session::connect(node ? node->uri() : "embedded:");
  const c10::InferenceMode inference;
  const at::Tensor remote = at::ones({1}).to(session.device());
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
  at::set_num_threads(1);
  measure(harness, "shm");
  measure(harness, "embedded");
}

const Registration kInvoke("invoke", run_invoke);

}  // namespace
}  // namespace genie::bench
