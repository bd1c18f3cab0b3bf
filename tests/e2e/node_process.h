// A real genie-node in a process of its own, for tests.
//
// Thread-safety: one thread. Ownership: the destructor kills the process and removes its folder.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "datapath/base/clock.h"
#include "src/control/control.h"
#include "tests/eventually.h"

namespace genie::test {

class NodeProcess {
 public:
  // Starts genie-node with `flags` and --listen on a socket of its own; does not wait for anything. `before_exec` is called in
  // the new process.
  explicit NodeProcess(std::vector<std::string> flags = {}, bool own_listen = true, void (*before_exec)() = nullptr) {
    std::string pattern = (std::filesystem::temp_directory_path() / "genie-e2e-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
    if (own_listen) {
      flags.insert(flags.begin(), {"--listen", uri()});
    }
    start(std::move(flags), before_exec);
  }
  NodeProcess(const NodeProcess&) = delete;
  NodeProcess& operator=(const NodeProcess&) = delete;
  ~NodeProcess() {
    if (pid_ > 0) {
      ::kill(pid_, SIGCONT);
      ::kill(pid_, SIGKILL);
      (void)wait_exit();
    }
    if (errors_ >= 0) ::close(errors_);
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::string folder() const { return folder_; }
  std::string uri() const { return "unix:" + folder_ + "/node.sock"; }
  pid_t pid() const { return pid_; }
  void signal(int number) const { ASSERT_EQ(::kill(pid_, number), 0); }
  // Returns when all its threads have stopped; until then one on another core may go on.
  void stop() const {
    signal(SIGSTOP);
    int status = 0;
    ASSERT_EQ(::waitpid(pid_, &status, WUNTRACED), pid_);
    ASSERT_TRUE(WIFSTOPPED(status));
  }

  // Until the node says that it is ready; false when it ended instead or the time is over.
  bool wait_ready() { return read_until("genie-node: ready") && read_until("threads="); }
  // What it wrote to stderr so far (after wait_ready or wait_exit).
  const std::string& errors() const { return text_; }

  // The word behind `key` in the line that says so: of_ready("control=").
  std::string of_ready(const std::string& key) const {
    const size_t begin = text_.find(' ' + key);
    if (begin == std::string::npos) return {};
    const size_t first = begin + 1 + key.size();
    return text_.substr(first, text_.find_first_of(" \n", first) - first);
  }

  // The exit code, or -signal.
  int wait_exit() {
    read_until("");
    const Deadline deadline = Deadline::after_ms(kPatienceMs);
    int status = 0;
    while (::waitpid(pid_, &status, WNOHANG) == 0) {
      if (deadline.expired()) {
        ADD_FAILURE() << "genie-node did not end";
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, &status, 0);
        break;
      }
      std::this_thread::yield();
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  control::NodeReport report() const {
    auto client = control::ControlClient::make(uri(), "");
    EXPECT_TRUE(client.ok());
    const auto report = (*client)->report(Deadline::after_ms(kPatienceMs));
    EXPECT_TRUE(report.ok()) << report.status().to_string();
    return report.ok() ? *report : control::NodeReport{};
  }

  // Asks for the status until `predicate` holds.
  template <typename Predicate>
  bool eventually(const Predicate& predicate) const {
    return test::eventually([&] { return predicate(report()); });
  }
  // Nothing of any session is left.
  bool becomes_empty() const {
    return eventually([](const control::NodeReport& report) {
      return report.sessions == 0 && report.storages == 0 && report.storage_bytes == 0 && report.templates == 0 &&
             report.in_flight == 0 && report.regions == 0 && report.region_bytes == 0;
    });
  }

 private:
  void start(std::vector<std::string> flags, void (*before_exec)()) {
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    std::string program = GENIE_NODE_PROGRAM;
    std::vector<char*> arguments{program.data()};
    for (std::string& flag : flags) arguments.push_back(flag.data());
    arguments.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(ends[1], STDERR_FILENO);
      if (before_exec != nullptr) before_exec();
      ::execv(program.c_str(), arguments.data());
      ::_exit(127);
    }
    ::close(ends[1]);
    errors_ = ends[0];
  }

  // An empty text: until the end.
  bool read_until(const std::string& wanted) {
    const Deadline deadline = Deadline::after_ms(kPatienceMs);
    while (wanted.empty() || text_.find(wanted) == std::string::npos) {
      pollfd waiting{.fd = errors_, .events = POLLIN, .revents = 0};
      if (::poll(&waiting, 1, static_cast<int>(deadline.left_ns() / 1'000'000)) <= 0) return false;
      char buffer[4096];
      const ssize_t got = ::read(errors_, buffer, sizeof(buffer));
      if (got <= 0) return false;
      text_.append(buffer, static_cast<size_t>(got));
    }
    return true;
  }

  std::string folder_;
  pid_t pid_ = -1;
  int errors_ = -1;
  std::string text_;
};

}  // namespace genie::test
