// Two network namespaces and a wire between them, for tests of the networks: "here" is where this process is, "there" is where
// a test starts what it wants to reach, and a wire with faults leads through a relay (relay.cc) in a third namespace.
//
// The namespaces belong to this process: when it ends, however it ends, nothing of them is left.
// Needs root or user namespaces; where neither is allowed, make_networks() says so and tests are skipped.
// Thread-safety: one thread; make_networks() comes first, before any other thread. Errors: exceptions.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "datapath/base/file_descriptor.h"
#include "tests/network/faults.h"
#include "tests/network/namespaces.h"

namespace genie::test {

// The addresses of the wire's two ends, and the name of the interface at both.
inline constexpr const char* kHere = "10.77.0.1";
inline constexpr const char* kThere = "10.77.0.2";
inline constexpr const char* kInterface = "genie0";

// Moves this process to namespaces of its own, with nothing but their loopback. Empty, or why that is impossible.
std::string make_networks();

// What make_networks() answered last.
const std::string& why_no_networks();

// For a child between fork() and exec(): what it runs is there, and sees that namespace's interfaces in /sys.
void go_there();

// The calling thread is there while it lives: sockets that it opens stay there.
class VisitThere : public Visit {
 public:
  VisitThere();
};

// One at a time.
class Wire {
 public:
  Wire();                               // a veth pair, as the kernel makes it
  explicit Wire(const Faults& faults);  // by way of a relay; $GENIE_TEST_SEED or a new seed, printed
  Wire(const Wire&) = delete;
  Wire& operator=(const Wire&) = delete;
  ~Wire();

  // With a relay: nothing passes any more, and neither end is told; and again as before.
  WireCounters cut() { return ask("cut"); }
  WireCounters heal() { return ask("heal"); }
  WireCounters counters() { return ask("counters"); }

  // This end's interface, down and up.
  void pull();
  void plug();

 private:
  void start_relay(const Faults& faults);
  std::string read_line();
  WireCounters ask(const std::string& command);

  pid_t relay_ = -1;
  datapath::FileDescriptor to_relay_;  // a socket: its standard input and output
  std::string said_;
};

}  // namespace genie::test
