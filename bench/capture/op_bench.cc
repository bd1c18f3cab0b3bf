// genie-bench capture, single operators: one operator issued many times on 4x4 tensors, captured, beside CPU eager and beside
// libtorch's own lazy TorchScript backend, which traces on lazy:0.
//
// A sample is a burst of calls, each result dropped at once; what was captured or traced is sent, run and waited for between
// the bursts, outside of the time.
#include <ATen/Parallel.h>
#include <ATen/ops/add.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <genie/genie.h>

#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "bench/benches.h"
#include "bench/capture/lazy_ts.h"
#include "bench/capture/modes.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

constexpr int kBurst = 128;

// What one burst calls. `written` is its own tensor in every burst.
struct Operands {
  at::Tensor a, b, written;
};

struct Op {
  const char* name;
  void (*call)(Operands&);
  std::optional<double> target_ns;       // in inference mode, best of the runs
  std::optional<double> target_of_lazy;  // ratio
};

constexpr double kMostNs = 300;
constexpr double kMostOfLazy = 0.08;

const Op kOps[] = {
    {"add", [](Operands& t) { at::add(t.a, t.b); }, kMostNs, kMostOfLazy},
    {"mm", [](Operands& t) { at::mm(t.a, t.b); }, kMostNs, kMostOfLazy},
    {"add_", [](Operands& t) { t.written.add_(t.b); }, std::nullopt, kMostOfLazy},
    {"view", [](Operands& t) { t.a.view({16}); }, std::nullopt, std::nullopt},
    {"softmax", [](Operands& t) { at::softmax(t.a, 1); }, kMostNs, std::nullopt},
};

class Burst {
 public:
  Burst(const Op& op, std::string mode, at::Device device, std::function<void()> settle)
      : op_(op), mode_(std::move(mode)), settle_(std::move(settle)) {
    const ModeGuard guard(mode_);
    const auto operand = [&] {
      const at::Tensor value = at::randn({4, 4}).to(device);
      return mode_ == "inference" ? value : value.detach().requires_grad_();
    };
    operands_ = {operand(), operand(), {}};
  }
  // Nanoseconds per call.
  double run() {
    const ModeGuard guard(mode_);
    operands_.written = operands_.a.clone();  // no leaf: may be written to while gradients are recorded
    settle_();
    const uint64_t begin = now_ns();
    for (int i = 0; i < kBurst; ++i) op_.call(operands_);
    const uint64_t end = now_ns();
    settle_();
    return static_cast<double>(end - begin) / kBurst;
  }

 private:
  const Op& op_;
  const std::string mode_;
  const std::function<void()> settle_;
  Operands operands_;
};

// One row for one peer: beside eager the target is a time of our own, beside the lazy backend a ratio.
void measure(Harness& harness, const Op& op, const std::string& mode, const Session& session) {
  const Json params = {{"op", op.name}, {"mode", mode}};
  if (!harness.wants("capture.op", params)) return;
  const size_t runs = harness.full_or_quick<size_t>(101, 15);
  const auto row = [&](const char* peer, std::optional<double> target, TargetOf of, at::Device device,
                       std::function<void()> settle) {
    Burst ours(op, mode, session.device(), [&session] { session.synchronize(); });
    Burst theirs(op, mode, device, std::move(settle));
    harness.row({.name = "capture.op", .params = params, .unit = "ns", .target = target, .target_of = of})
        .ours([&] { return ours.run(); })
        .peer(peer, [&] { return theirs.run(); })
        .warmup(3)
        .runs(runs)
        .measure();
  };
  row("eager", mode == "inference" ? op.target_ns : std::nullopt, TargetOf::kBest, at::kCPU, [] {});
  init_lazy_ts();
  row("lazy_ts", op.target_of_lazy, TargetOf::kRatio, at::Device(at::kLazy, 0), sync_lazy_ts);
}

void run_ops(Harness& harness) {
  at::set_num_threads(1);
  const Session session = Session::connect("embedded:");
  for (const Op& op : kOps) {
    for (const std::string mode : kModes) measure(harness, op, mode, session);
  }
}

const Registration kOpBench("capture", run_ops);

}  // namespace
}  // namespace genie::bench
