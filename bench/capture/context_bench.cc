// genie-bench capture, the context style: a factory whose device the capture decides, and what an ordinary operator on the CPU
// costs in a process that has this library, a session and a finished capture, but none open.
#include <ATen/Parallel.h>
#include <ATen/ops/ones.h>
#include <genie/genie.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>

#include "bench/benches.h"
#include "bench/capture/plain_op.h"
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
  const auto named = [&session] {
    const auto options = at::TensorOptions(session.device());
    const double ns = burst_ns([&] { at::ones({4, 4}, options); });
    session.synchronize();
    return ns;
  };
  harness.row({.name = "capture.context_factory", .params = {{"op", "ones"}}, .unit = "ns"})
      .ours(captured)
      .peer("device", named)
      .peer("eager", [] { return burst_ns([] {
                            at::ones({4, 4});
                          }); })
      .warmup(3)
      .runs(runs)
      .measure();
}

// The program bench/capture/plain_torch.cc, which lies beside this one.
class PlainTorch {
 public:
  PlainTorch() {
    std::array<int, 2> ask{};
    std::array<int, 2> answer{};
    if (pipe(ask.data()) != 0 || pipe(answer.data()) != 0) throw std::runtime_error("no pipe for the peer");
    pid_ = fork();
    if (pid_ < 0) throw std::runtime_error("no process for the peer");
    if (pid_ == 0) {
      dup2(ask[0], STDIN_FILENO);
      dup2(answer[1], STDOUT_FILENO);
      for (const int end : {ask[0], ask[1], answer[0], answer[1]}) close(end);
      execl(GENIE_BENCH_PLAIN_TORCH, GENIE_BENCH_PLAIN_TORCH, static_cast<char*>(nullptr));
      _exit(127);
    }
    close(ask[0]);
    close(answer[1]);
    ask_ = ask[1];
    answer_ = fdopen(answer[0], "r");
  }
  PlainTorch(const PlainTorch&) = delete;
  PlainTorch& operator=(const PlainTorch&) = delete;
  ~PlainTorch() {
    close(ask_);
    std::fclose(answer_);
    waitpid(pid_, nullptr, 0);
  }
  double run() {
    double ns = 0;
    if (write(ask_, "\n", 1) != 1 || std::fscanf(answer_, "%lf", &ns) != 1) {
      throw std::runtime_error("the peer " GENIE_BENCH_PLAIN_TORCH " ended");
    }
    return ns;
  }

 private:
  pid_t pid_ = -1;
  int ask_ = -1;
  std::FILE* answer_ = nullptr;
};

void measure_idle(Harness& harness, const Session& session) {
  const Json params = {{"op", "add"}};
  if (!harness.wants("idle.cpu_op", params)) return;
  if (access(GENIE_BENCH_PLAIN_TORCH, X_OK) != 0) {
    return harness.note("idle.cpu_op: its peer is not built (ninja -C build bench/capture/genie-bench-plain-torch)");
  }
  { const Capture was_open(session.device()); }
  PlainTorch plain;
  const PlainOp op;
  harness.row({.name = "idle.cpu_op", .params = params, .unit = "ns", .target = 1.05})
      .ours([&] { return op.run(); })
      .peer("plain torch", [&] { return plain.run(); })
      .warmup(5)
      .runs(harness.full_or_quick<size_t>(101, 25))
      .measure();
}

void run_context(Harness& harness) {
  at::set_num_threads(1);
  const Session session = Session::connect("embedded:");
  measure_factory(harness, session);
  measure_idle(harness, session);
}

const Registration kContext("capture", run_context);

}  // namespace
}  // namespace genie::bench
