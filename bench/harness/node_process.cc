#include "bench/harness/node_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <vector>

#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

constexpr uint64_t kReadyMs = 60'000;
constexpr uint64_t kStopMs = 5'000;

// Reads until `wanted` was written. What was read; it lacks `wanted` when the node ended or the time is over.
std::string read_until(int descriptor, std::string_view wanted) {
  const Deadline deadline = Deadline::after_ms(kReadyMs);
  std::string text;
  while (text.find(wanted) == std::string::npos) {
    pollfd waiting{.fd = descriptor, .events = POLLIN, .revents = 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(deadline.left_ns() / 1'000'000));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) break;
    char buffer[4096];
    const ssize_t got = ::read(descriptor, buffer, sizeof(buffer));
    if (got <= 0) break;
    text.append(buffer, static_cast<size_t>(got));
  }
  return text;
}

void drain(int descriptor) {
  char buffer[4096];
  while (true) {
    const ssize_t got = ::read(descriptor, buffer, sizeof(buffer));
    if (got == 0 || (got < 0 && errno != EINTR)) return;
  }
}

}  // namespace

NodeProcess::NodeProcess(const NodeSettings& settings) {
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "genie-node";
  if (!std::filesystem::exists(program)) {
    throw std::runtime_error("there is no genie-node beside genie-bench (" + program.string() + "); build it");
  }
  std::string pattern = (std::filesystem::temp_directory_path() / "genie-bench-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) throw std::system_error(errno, std::generic_category(), pattern);
  folder_ = pattern;
  start(program.string(), settings);
  const std::string text = read_until(errors_, "genie-node: ready");
  if (text.find("genie-node: ready") == std::string::npos) {
    stop();
    throw std::runtime_error("genie-node did not become ready: " + text);
  }
  drain_ = std::thread(drain, errors_);
}

NodeProcess::~NodeProcess() { stop(); }

void NodeProcess::start(const std::string& program, const NodeSettings& settings) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw std::system_error(errno, std::generic_category(), "pipe2");
  std::vector<std::string> flags{program,       "--listen",        uri(), "--threads", std::to_string(settings.threads),
                                 "--transport", settings.transport};
  std::vector<char*> arguments;
  for (std::string& flag : flags) arguments.push_back(flag.data());
  arguments.push_back(nullptr);
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (settings.core) CPU_SET(*settings.core, &cores);
  pid_ = ::fork();
  if (pid_ == 0) {
    if (settings.core) ::sched_setaffinity(0, sizeof(cores), &cores);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::dup2(ends[1], STDERR_FILENO);
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
  ::close(ends[1]);
  errors_ = ends[0];
}

void NodeProcess::stop() noexcept {
  if (pid_ > 0) {
    ::kill(pid_, SIGTERM);
    const Deadline deadline = Deadline::after_ms(kStopMs);
    int status = 0;
    while (::waitpid(pid_, &status, WNOHANG) == 0) {
      if (deadline.expired()) ::kill(pid_, SIGKILL);
      ::usleep(1'000);
    }
    pid_ = -1;
  }
  if (drain_.joinable()) drain_.join();
  if (errors_ >= 0) ::close(errors_);
  errors_ = -1;
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

}  // namespace genie::bench
