// genie-bench e2e, memory: the most that client and node together have while a model is made on the client, moved to its device and
// run, beside the most that local eager has with the same program. Each program is a process of its own, and each run has a
// new node.
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <optional>
#include <stdexcept>
#include <string>

#include "bench/benches.h"
#include "bench/e2e/memory_program.h"
#include "bench/harness/memory.h"
#include "bench/harness/node_process.h"
#include "bench/remote/place.h"

namespace genie::bench {
namespace {

pid_t start_program(const std::string& model, const std::string& size, const std::string& where) {
  const pid_t pid = ::fork();
  if (pid < 0) throw std::runtime_error("no process");
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::execl("/proc/self/exe", "genie-bench", "memory-program", model.c_str(), size.c_str(), where.c_str(),
            static_cast<char*>(nullptr));
    ::_exit(127);
  }
  return pid;
}

// Of the program, and of the node that it uses.
double peak_mb(const std::string& model, const std::string& size, const NodeProcess* node) {
  const pid_t program = start_program(model, size, node != nullptr ? node->uri() : "cpu");
  std::vector<pid_t> processes{program};
  if (node != nullptr) processes.push_back(node->process());
  PeakMemory peak(processes);
  int status = 0;
  if (::waitpid(program, &status, 0) != program || status != 0) throw std::runtime_error("the program failed");
  return static_cast<double>(peak.stop()) / kMegabyte;
}

void measure(Harness& harness, const std::string& model, const std::string& transport) {
  const std::string size = harness.full_or_quick("real", "reduced");
  const Json params = {{"model", model}, {"size", size}, {"transport", transport}, {"threads", kThreads}};
  if (!harness.wants("memory.peak", params)) return;
  constexpr double kMostOfEager = 1.1;
  constexpr double kAllowanceMb = 100;
  harness
      .row({.name = "memory.peak", .params = params, .unit = "MB", .target = kMostOfEager, .allowance = kAllowanceMb})
      .ours([&] {
        const NodeProcess node({.threads = kThreads, .transport = transport});
        return peak_mb(model, size, &node);
      })
      .peer("local eager", [&] { return peak_mb(model, size, nullptr); })
      .warmup(0)
      .runs(harness.full_or_quick(3, 1))
      .measure();
}

void run_memory(Harness& harness) {
  for (const std::string& transport : harness.transports_or({"shm"})) {
    for (const std::string& model : memory_models()) measure(harness, model, transport);
  }
}

const Registration kMemory("e2e", run_memory);

}  // namespace
}  // namespace genie::bench
