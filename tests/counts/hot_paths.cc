// The hot paths on fixed input, to be run under callgrind: only the instructions of what is counted here are collected.
//
//   hot_paths inference|no_grad|grad|eager
//
// Eight decode steps of a small GPT, after four that are not counted. Each is captured (counted_capture), then flushed with a
// template that is known (SessionCore::flush) and replayed by the node in this process (Store::invoke). With `eager` PyTorch
// runs them on the CPU, in inference mode (counted_eager): what a replay is measured by.
#include <ATen/Parallel.h>
#include <genie/genie.h>
#include <valgrind/callgrind.h>

#include <cstdio>
#include <string>
#include <string_view>

#include "bench/capture/gpt_step.h"
#include "bench/capture/modes.h"

namespace genie::bench {
namespace {

constexpr int kWarmSteps = 4;
constexpr int kCountedSteps = 8;
constexpr int64_t kStartLength = 8;

}  // namespace

// Named, so that callgrind can be told to collect within it.
[[gnu::noinline]] at::Tensor counted_capture(GptStep& program) {
  at::Tensor logits = program.step();
  asm volatile("" ::: "memory");
  return logits;
}

[[gnu::noinline]] at::Tensor counted_eager(GptStep& program) {
  at::Tensor logits = program.step();
  asm volatile("" ::: "memory");
  return logits;
}

namespace {

void run_eager() {
  const ModeGuard guard("inference");
  GptStep program(at::kCPU, false);
  program.reset(kStartLength);
  for (int i = 0; i < kWarmSteps; ++i) (void)program.step();
  CALLGRIND_START_INSTRUMENTATION;
  for (int i = 0; i < kCountedSteps; ++i) (void)counted_eager(program);
  CALLGRIND_STOP_INSTRUMENTATION;
}

void run(const Session& session, const std::string& mode) {
  const ModeGuard guard(mode);
  GptStep program(session.device(), mode != "inference");
  program.reset(kStartLength);
  at::Tensor logits;
  for (int i = 0; i < kWarmSteps; ++i) {
    logits = program.step();
    program.detach_cache();
    session.synchronize();
  }
  CALLGRIND_START_INSTRUMENTATION;
  for (int i = 0; i < kCountedSteps; ++i) {
    logits = counted_capture(program);
    program.detach_cache();
    session.synchronize();
  }
  CALLGRIND_STOP_INSTRUMENTATION;
}

}  // namespace
}  // namespace genie::bench

int main(int count, char** arguments) {
  if (count != 2) {
    std::fputs("usage: hot_paths inference|no_grad|grad|eager\n", stderr);
    return 2;
  }
  at::set_num_threads(1);
  if (arguments[1] == std::string_view("eager")) {
    genie::bench::run_eager();
    return 0;
  }
  const genie::Session session = genie::Session::connect("embedded:");
  genie::bench::run(session, arguments[1]);
  return 0;
}
