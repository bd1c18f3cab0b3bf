#include "bench/transfer/outside_peers.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <thread>
#include <vector>

#include "datapath/ucx/tls_list.h"

namespace genie::bench {
namespace {

using datapath::FileDescriptor;

constexpr uint64_t kPatienceMs = 20'000;

bool installed(const std::string& program) {
  std::istringstream folders(std::getenv("PATH") != nullptr ? std::getenv("PATH") : "/usr/bin");
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (::access((folder + "/" + program).c_str(), X_OK) == 0) return true;
  }
  return false;
}

uint16_t free_port() {
  const FileDescriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  socklen_t size = sizeof(address);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw std::system_error(errno, std::generic_category(), "no free port");
  }
  return ::ntohs(address.sin_port);
}

// The programs do not say reliably when they listen, the kernel does.
bool somebody_listens(uint16_t port) {
  std::array<char, 8> wanted{};
  std::snprintf(wanted.data(), wanted.size(), ":%04X", port);
  for (const char* table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    std::ifstream file(table);
    for (std::string line; std::getline(file, line);) {
      std::istringstream columns(line);
      std::string number, local, remote, state;
      columns >> number >> local >> remote >> state;
      if (state == "0A" && local.ends_with(wanted.data())) return true;
    }
  }
  return false;
}

// A program and what it prints.
class Program {
 public:
  Program(std::vector<std::string> words, size_t core) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw std::system_error(errno, std::generic_category(), "pipe2");
    output_ = FileDescriptor(ends[0]);
    const FileDescriptor theirs(ends[1]);
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) throw std::system_error(errno, std::generic_category(), "fork");
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::dup2(theirs.get(), STDOUT_FILENO);
      ::dup2(theirs.get(), STDERR_FILENO);
      take_core(core);
      ::execvp(arguments[0], arguments.data());
      ::_exit(127);
    }
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  bool over() {
    if (pid_ <= 0) return true;
    if (::wait4(pid_, &status_, WNOHANG, &usage_) != pid_) return false;
    pid_ = -1;
    return true;
  }
  // Until it ends or the deadline passes; whether it ended well.
  bool finish(const Deadline& deadline) {
    for (;;) {
      pollfd waiting{.fd = output_.get(), .events = POLLIN, .revents = 0};
      const int ready = ::poll(&waiting, 1, static_cast<int>(std::min<uint64_t>(deadline.left_ns() / 1'000'000, 1000)));
      if (deadline.expired()) return false;
      if (ready <= 0) continue;
      std::array<char, 4096> chunk{};
      const ssize_t got = ::read(output_.get(), chunk.data(), chunk.size());
      if (got > 0) said_.append(chunk.data(), static_cast<size_t>(got));
      if (got == 0) break;
    }
    while (!over()) {
      if (deadline.expired()) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return WIFEXITED(status_) && WEXITSTATUS(status_) == 0;
  }
  const std::string& said() const { return said_; }
  // All that it used, once it is over.
  double cpu_ns() const {
    const auto ns = [](const timeval& time) {
      return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_usec) * 1e3;
    };
    return ns(usage_.ru_utime) + ns(usage_.ru_stime);
  }

 private:
  pid_t pid_ = -1;
  int status_ = 0;
  rusage usage_{};
  FileDescriptor output_;
  std::string said_;
};

size_t ucx_warm_up(const OutsideRun& run) { return std::clamp<size_t>(run.count / 10, 1, 1000); }

std::vector<std::string> ucx_words(const OutsideRun& run) {
  const char* test = "ucp_get";
  const bool latency = run.figure == Figure::kLatency;
  if (run.op == TransferOp::kWrite) test = latency ? "ucp_put_lat" : "ucp_put_bw";
  if (run.op == TransferOp::kSend) test = latency ? "ucp_am_lat" : "ucp_am_bw";
  std::vector<std::string> words = {"ucx_perftest",
                                    "-t",
                                    test,
                                    "-s",
                                    std::to_string(run.bytes),
                                    "-n",
                                    std::to_string(run.count),
                                    "-w",
                                    std::to_string(ucx_warm_up(run)),
                                    "-f",
                                    "-v"};
  // Watching over the peer, as ours does where UCX can.
  const char* const list = std::getenv("UCX_TLS");
  if (datapath::ucx::may_use_network(list != nullptr ? list : "all")) words.emplace_back("-e");
  if (run.figure == Figure::kCpuPerByte) words.insert(words.end(), {"-E", "sleep"});
  return words;
}

std::vector<std::string> verbs_words(const OutsideRun& run) {
  const std::string program = "ib_" + std::string(op_name(run.op)) + (run.figure == Figure::kLatency ? "_lat" : "_bw");
  std::vector<std::string> words = {
      program, "-F", "-s", std::to_string(run.bytes), "-n", std::to_string(std::max<size_t>(run.count, 5))};
  if (run.figure == Figure::kCpuPerByte) words.emplace_back("-e");
  return words;
}

std::string last_words(const std::string& said) {
  constexpr size_t kMost = 400;
  return said.size() <= kMost ? said : said.substr(said.size() - kMost);
}

struct Outcome {
  std::string said;
  double cpu_ns = 0;  // of both processes
};

Outcome run_program(const OutsideRun& run) {
  const Deadline deadline = Deadline::after_ms(kPatienceMs);
  const bool ucx = run.transport == "ucx";
  std::vector<std::string> words = ucx ? ucx_words(run) : verbs_words(run);
  const uint16_t port = free_port();
  words.insert(words.end(), {"-p", std::to_string(port)});
  Program server(words, 1);
  while (!somebody_listens(port)) {
    if (server.over() || deadline.expired()) {
      server.finish(deadline);
      throw std::runtime_error(words[0] + " did not listen: " + last_words(server.said()));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  words.insert(words.begin() + 1, "127.0.0.1");
  Program client(words, 0);
  if (!client.finish(deadline)) throw std::runtime_error(words[0] + " failed: " + last_words(client.said()));
  if (run.figure == Figure::kCpuPerByte && !server.finish(deadline)) {
    throw std::runtime_error(words[0] + "'s server failed: " + last_words(server.said()));
  }
  return {client.said(), client.cpu_ns() + server.cpu_ns()};
}

// Neither program tells its CPU time, and what it takes to start is no part of a transfer: the difference of two runs.
double cpu_per_byte(OutsideRun run) {
  const auto operations = [&] {
    return static_cast<double>(run.count + (run.transport == "ucx" ? ucx_warm_up(run) : 0));
  };
  constexpr size_t kFew = 5;
  run.count = std::max(run.count, 4 * kFew);
  const double many = operations();
  const double long_run = run_program(run).cpu_ns;
  run.count = kFew;
  const double short_run = run_program(run).cpu_ns;
  return std::max(0.0, long_run - short_run) / ((many - operations()) * static_cast<double>(run.bytes));
}

double run_once(const OutsideRun& run) {
  if (run.figure == Figure::kCpuPerByte) return cpu_per_byte(run);
  const std::string said = run_program(run).said;
  const auto value = run.transport == "ucx" ? parse_ucx_perftest(said, run.figure) : parse_perftest(said, run.figure);
  if (!value) throw std::runtime_error("the peer's program printed no figure: " + last_words(said));
  return *value;
}

// The numbers of the last line that begins with one.
std::vector<double> last_numbers(const std::string& output, char separator) {
  std::vector<double> last;
  std::istringstream lines(output);
  for (std::string line; std::getline(lines, line);) {
    std::replace(line.begin(), line.end(), separator, ' ');
    std::istringstream columns(line);
    std::vector<double> numbers;
    for (double number = 0; columns >> number;) numbers.push_back(number);
    if (numbers.size() >= 4) last = numbers;
  }
  return last;
}

}  // namespace

std::string outside_peer(const std::string& transport) {
  if (transport == "ucx" && installed("ucx_perftest")) return "ucx_perftest";
  if (transport == "verbs" && installed("ib_write_bw")) return "perftest";
  return {};
}

// iterations, percentile latency, average and overall latency (us), average and overall bandwidth (MiB/s), average and
// overall message rate (a second).
std::optional<double> parse_ucx_perftest(const std::string& output, Figure figure) {
  const std::vector<double> numbers = last_numbers(output, ',');
  if (numbers.size() != 8) return std::nullopt;
  switch (figure) {
    case Figure::kLatency: return numbers[1];
    case Figure::kBandwidth: return numbers[5] * (1 << 20) / 1e9;
    case Figure::kMessageRate: break;
    case Figure::kCpuPerByte: return std::nullopt;  // they do not tell it
  }
  return numbers[7] / 1e6;
}

// Bandwidth: bytes, iterations, peak and average (MiB/s), rate (millions a second). Latency: bytes, iterations, least,
// most, typical (the median), ... (us).
std::optional<double> parse_perftest(const std::string& output, Figure figure) {
  const std::vector<double> numbers = last_numbers(output, '\t');
  if (numbers.size() < 5) return std::nullopt;
  switch (figure) {
    case Figure::kBandwidth: return numbers[3] * (1 << 20) / 1e9;
    case Figure::kLatency:
    case Figure::kMessageRate: break;
    case Figure::kCpuPerByte: return std::nullopt;
  }
  return numbers[4];
}

double run_outside(const OutsideRun& run) {
  try {
    return run_once(run);
  } catch (const std::runtime_error&) {  // they fail now and then on a busy machine: once more
    return run_once(run);
  }
}

}  // namespace genie::bench
