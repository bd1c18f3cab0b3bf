// genie-bench capture, what a program pays that has this library and does nothing with it: at its start, and for an ordinary operator
// on the CPU in a process that has a session and a finished capture, but none open.
#include <ATen/Parallel.h>
#include <fcntl.h>
#include <genie/genie.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "bench/benches.h"
#include "bench/capture/plain_op.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

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

void measure_op(Harness& harness) {
  const Json params = {{"op", "add"}};
  if (!harness.wants("idle.cpu_op", params)) return;
  if (access(GENIE_BENCH_PLAIN_TORCH, X_OK) != 0) {
    return harness.note("idle.cpu_op: its peer is not built (ninja -C build bench/capture/genie-bench-plain-torch)");
  }
  const Session session = Session::connect("embedded:");
  { const Capture was_open(session.device()); }
  PlainTorch plain;
  const PlainOp op;
  harness.row({.name = "idle.cpu_op", .params = params, .unit = "ns", .target = 1.01})
      .ours([&] { return op.run(); })
      .peer("plain torch", [&] { return plain.run(); })
      .warmup(5)
      .runs(harness.full_or_quick<size_t>(101, 25))
      .measure();
}

// From fork() until the program, which has nothing to do, has ended.
double lifetime_ms(const char* program) {
  const uint64_t begin = now_ns();
  const pid_t pid = fork();
  if (pid < 0) throw std::runtime_error("no process");
  if (pid == 0) {
    dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), STDIN_FILENO);
    execl(program, program, static_cast<char*>(nullptr));
    _exit(127);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  if (status != 0) throw std::runtime_error(std::string(program) + " failed");
  return static_cast<double>(now_ns() - begin) / 1e6;
}

// The life of a process that links the library and does nothing with it, beside one with libtorch alone.
void measure_start(Harness& harness) {
  if (!harness.wants("idle.start")) return;
  if (access(GENIE_BENCH_PLAIN_TORCH, X_OK) != 0 || access(GENIE_BENCH_LINKED_TORCH, X_OK) != 0) {
    return harness.note("idle.start: its programs are not built (ninja -C build)");
  }
  constexpr double kMostMs = 30;
  harness.row({.name = "idle.start", .unit = "ms", .target = kMostMs, .target_of = TargetOf::kDifference})
      .ours([] { return lifetime_ms(GENIE_BENCH_LINKED_TORCH); })
      .peer("plain torch", [] { return lifetime_ms(GENIE_BENCH_PLAIN_TORCH); })
      .runs(harness.full_or_quick<size_t>(31, 5))
      .measure();
}

void run_idle(Harness& harness) {
  at::set_num_threads(1);
  measure_start(harness);
  measure_op(harness);
}

const Registration kIdle("capture", run_idle);

}  // namespace
}  // namespace genie::bench
