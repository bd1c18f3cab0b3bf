#include "tests/network/wire.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <vector>

#include "datapath/base/clock.h"
#include "tests/network/namespaces.h"

namespace genie::test {
namespace {

using datapath::FileDescriptor;

constexpr uint64_t kRelayPatienceMs = 60'000;

struct Networks {
  FileDescriptor there;
  FileDescriptor middle;
};
Networks networks;  // valid once make_networks() has succeeded

std::string& reason() {
  static std::string text = "make_networks() was not called";
  return text;
}

std::string seed() {
  const char* given = std::getenv("GENIE_TEST_SEED");
  return given != nullptr ? given : std::to_string(std::random_device{}());
}

void wait_carriers() {
  wait_running(kInterface);
  const VisitThere there;
  wait_running(kInterface);
}

}  // namespace

std::string make_networks() {
  try {
    leave_networks();
    networks = {make_network(), make_network()};
    reason().clear();
  } catch (const std::exception& error) {
    reason() = std::string("no network namespaces here: ") + error.what();
  }
  return reason();
}

const std::string& why_no_networks() { return reason(); }

void go_there() {
  try {
    if (::setns(networks.there.get(), CLONE_NEWNET) != 0 || ::unshare(CLONE_NEWNS) != 0) ::_exit(126);
    mount_sys();
  } catch (const std::exception&) {
    ::_exit(126);
  }
}

VisitThere::VisitThere() : Visit(networks.there.get()) {}

Wire::Wire() {
  make_veth(kInterface, kInterface, networks.there.get());
  set_address(kInterface, kHere);
  set_up(kInterface, true);
  {
    const VisitThere there;
    set_address(kInterface, kThere);
    set_up(kInterface, true);
  }
  wait_carriers();
}

Wire::Wire(const Faults& faults) {
  const auto lead_to_middle = [](const char* address, const char* end) {
    make_veth(kInterface, end, networks.middle.get());
    turn_offloads_off(kInterface);
    set_address(kInterface, address);
    set_up(kInterface, true);
    const Visit middle(networks.middle.get());
    turn_offloads_off(end);
    set_up(end, true);
  };
  lead_to_middle(kHere, "left");
  {
    const VisitThere there;
    lead_to_middle(kThere, "right");
  }
  wait_carriers();
  start_relay(faults);
}

Wire::~Wire() {
  if (relay_ > 0) {
    // Its input ends, and with it the relay; its last counters are worth a line in the log of a test.
    ::shutdown(to_relay_.get(), SHUT_WR);
    try {
      std::printf("wire: %s\n", read_line().c_str());
    } catch (const std::exception& error) {
      std::printf("wire: %s\n", error.what());
      ::kill(relay_, SIGKILL);
    }
    int status = 0;
    ::waitpid(relay_, &status, 0);
  }
  try {
    remove_interface(kInterface);
    const VisitThere there;
    if (relay_ > 0) remove_interface(kInterface);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "wire: %s\n", error.what());
  }
}

void Wire::pull() { set_up(kInterface, false); }
void Wire::plug() {
  set_up(kInterface, true);
  wait_running(kInterface);
}

void Wire::start_relay(const Faults& faults) {
  std::vector<std::string> words = {GENIE_RELAY_PROGRAM,
                                    "--left",
                                    "left",
                                    "--right",
                                    "right",
                                    "--seed",
                                    seed(),
                                    "--loss",
                                    std::to_string(faults.loss),
                                    "--delay-us",
                                    std::to_string(faults.delay_us),
                                    "--jitter-us",
                                    std::to_string(faults.jitter_us),
                                    "--reorder",
                                    std::to_string(faults.reorder),
                                    "--duplicate",
                                    std::to_string(faults.duplicate)};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) throw std::runtime_error("no socket pair");
  to_relay_ = FileDescriptor(ends[0]);
  FileDescriptor its_end(ends[1]);
  relay_ = ::fork();
  if (relay_ == 0) {
    ::dup2(its_end.get(), STDIN_FILENO);
    ::dup2(its_end.get(), STDOUT_FILENO);
    if (::setns(networks.middle.get(), CLONE_NEWNET) == 0) ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
  its_end = FileDescriptor();
  std::printf("wire: GENIE_TEST_%s repeats these faults\n", read_line().replace(0, 4, "SEED").c_str());
}

std::string Wire::read_line() {
  const Deadline deadline = Deadline::after_ms(kRelayPatienceMs);
  size_t end;
  while ((end = said_.find('\n')) == std::string::npos) {
    pollfd waiting{.fd = to_relay_.get(), .events = POLLIN, .revents = 0};
    char text[256];
    ssize_t got = -1;
    if (::poll(&waiting, 1, static_cast<int>(deadline.left_ns() / 1'000'000)) > 0) {
      got = ::read(to_relay_.get(), text, sizeof(text));
    }
    if (got <= 0) throw std::runtime_error("the relay ended, or does not answer; its stderr is above");
    said_.append(text, static_cast<size_t>(got));
  }
  const std::string line = said_.substr(0, end);
  said_.erase(0, end + 1);
  return line;
}

WireCounters Wire::ask(const std::string& command) {
  const std::string line = command + "\n";
  if (::send(to_relay_.get(), line.data(), line.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(line.size())) {
    throw std::runtime_error("the relay is gone");
  }
  WireCounters counters;
  const std::string answer = read_line();
  if (std::sscanf(answer.c_str(),
                  "forwarded=%" SCNu64 " lost=%" SCNu64 " reordered=%" SCNu64 " duplicated=%" SCNu64 " cut=%" SCNu64
                  " overflowed=%" SCNu64,
                  &counters.forwarded, &counters.lost, &counters.reordered, &counters.duplicated, &counters.cut,
                  &counters.overflowed) != 6) {
    throw std::runtime_error("the relay says: " + answer);
  }
  return counters;
}

}  // namespace genie::test
