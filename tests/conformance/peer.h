// A peer in another process, for tests that kill it: this program, started again.
#pragma once

#include <sys/types.h>

#include <string>

namespace genie::datapath::conformance {

// Starts this program as a client of `address`. Role "idle" connects and then does nothing; "silent" connects, and is
// stopped by SIGSTOP; "chatty" sends messages for ever; "owner" allocates a region and sends its key first; "writer" waits for the key of a
// region, in a message, and then writes there for ever, a few bytes at a time.
pid_t start_peer(const std::string& backend, const std::string& address, const std::string& role);
// SIGKILL, and its exit is collected.
void kill_peer(pid_t peer);

// What the other process runs; null-terminated arguments as start_peer() gave them.
int peer_main(int argc, char** argv);

}  // namespace genie::datapath::conformance
