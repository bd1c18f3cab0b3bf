// genie-bench capture, whole steps: a GPT-2 small decode step captured, beside CPU eager running the same program.
//
// Only capture is timed: between two steps the captured work is sent and waited for, so that no step finds a queue. Both sides
// see each cache length once (new shapes in every step), and both pay for dropping the step before.
#include <ATen/Parallel.h>
#include <genie/genie.h>
#include <malloc.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

#include "bench/benches.h"
#include "bench/capture/gpt_step.h"
#include "bench/capture/modes.h"
#include "bench/harness/allocations.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

constexpr int64_t kStartLength = 8;
constexpr int64_t kStepsPerRun = 16;
constexpr size_t kRuns = 10;
constexpr size_t kQuickRuns = 3;
constexpr int kHeldSteps = 32;

// Of CPU eager's time.
double target_of(const std::string& mode) { return mode == "inference" ? 0.25 : mode == "no_grad" ? 0.3 : 0.45; }

// That are not free, of all threads.
size_t heap_bytes() {
  const struct mallinfo2 heap = mallinfo2();
  return heap.uordblks + heap.hblkhd;
}

// One side: runs of 16 steps, each run beginning where the lengths of the one before ended.
class Decoder {
 public:
  Decoder(at::Device device, std::string mode, const Session* session)
      : mode_(std::move(mode)), session_(session), device_(device) {
    const ModeGuard guard(mode_);
    program_.emplace(device, mode_ != "inference");
  }
  ~Decoder() {
    if (session_ == nullptr) return;
    program_.reset();
    session_->synchronize();
  }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // `timed` runs the step that it is given and keeps what it measured.
  template <class Timed>
  void run(const Timed& timed) {
    const ModeGuard guard(mode_);
    program_->reset(next_length_);
    next_length_ += kStepsPerRun;
    at::Tensor logits = program_->step();
    settle();
    for (int64_t i = 1; i < kStepsPerRun; ++i) {
      timed([&] { logits = program_->step(); });
      settle();
    }
  }
  // Of everything on the heap, per operator of steps that are not sent. Fewer than a flush of itself takes.
  double held_bytes_per_op() {
    const ModeGuard guard(mode_);
    program_->reset(next_length_);
    at::Tensor logits = program_->step();
    settle();
    const uint64_t ops = session_->stats().captured_ops;
    const uint64_t flushes = session_->stats().flushes;
    const size_t before = heap_bytes();
    for (int i = 0; i < kHeldSteps; ++i) {
      logits = program_->step();
      program_->detach_cache();
    }
    const auto held = static_cast<double>(heap_bytes() - before);
    if (session_->stats().flushes != flushes) throw std::runtime_error("captured operators were sent meanwhile");
    return held / static_cast<double>(session_->stats().captured_ops - ops);
  }
  void sample_us(Samples& samples) {
    run([&](const auto& step) {
      const uint64_t begin = now_ns();
      step();
      samples.add(static_cast<double>(now_ns() - begin) / 1e3);
    });
  }

 private:
  void settle() {
    program_->detach_cache();
    if (session_ != nullptr) session_->synchronize();
  }

  const std::string mode_;
  const Session* session_;
  const at::Device device_;
  std::optional<GptStep> program_;
  int64_t next_length_ = kStartLength;
};

// How often a captured operator asks malloc, on the thread that captures.
void measure_allocations(Harness& harness, const Session& session, const std::string& mode) {
  const Json params = {{"mode", mode}};
  if (!harness.wants("capture.allocations_per_op", params)) return;
  if (!counts_allocations()) return harness.note("a sanitizer owns malloc: allocations are not counted");
  Decoder decoder(session.device(), mode, &session);
  harness.row({.name = "capture.allocations_per_op", .params = params, .unit = "calls"})
      .ours([&](Samples& samples) {
        decoder.run([&](const auto& step) {
          const uint64_t ops = session.stats().captured_ops;
          const AllocationScope scope;
          step();
          const uint64_t calls = scope.counts().calls;
          samples.add(static_cast<double>(calls) / static_cast<double>(session.stats().captured_ops - ops));
        });
      })
      .runs(kQuickRuns)
      .measure();
}

// What a captured operator holds of this process' memory until the flush, its results gone. On a session and a thread of its own
// each time: those that have flushed before still have the room of what they flushed.
double held_bytes_per_op(const std::string& mode) {
  const Session session = Session::connect("embedded:");
  double held = 0;
  std::thread([&] { held = Decoder(session.device(), mode, &session).held_bytes_per_op(); }).join();
  return held;
}

void measure_held(Harness& harness, const std::string& mode) {
  const Json params = {{"mode", mode}};
  if (!harness.wants("capture.bytes_per_op", params)) return;
  if (!counts_allocations()) return harness.note("a sanitizer owns malloc: what is held is not known");
  constexpr double kMostBytes = 200;
  harness
      .row({.name = "capture.bytes_per_op",
            .params = params,
            .unit = "bytes",
            .target = kMostBytes,
            .target_of = TargetOf::kMedian})
      .ours([&] { return held_bytes_per_op(mode); })
      .runs(kQuickRuns)
      .measure();
}

void run_stream(Harness& harness) {
  at::set_num_threads(1);
  const Session session = Session::connect("embedded:");
  for (const std::string mode : kModes) {
    const Json params = {{"mode", mode}};
    if (harness.wants("capture.stream", params)) {
      Decoder ours(session.device(), mode, &session);
      Decoder eager(at::kCPU, mode, nullptr);
      harness.row({.name = "capture.stream", .params = params, .unit = "us", .target = target_of(mode)})
          .ours([&](Samples& samples) { ours.sample_us(samples); })
          .peer("eager", [&](Samples& samples) { eager.sample_us(samples); })
          .runs(harness.full_or_quick(kRuns, kQuickRuns))
          .measure();
    }
    measure_allocations(harness, session, mode);
    measure_held(harness, mode);
  }
}

const Registration kStream("capture", run_stream);

}  // namespace
}  // namespace genie::bench
