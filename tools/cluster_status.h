// `genie status`: what a node says about itself and its sessions.
//
// Thread-safety: one call at a time. Ownership: nothing outlives the call.
#pragma once

#include <string>

namespace genie::tools {

struct StatusOptions {
  std::string cluster;     // empty: $GENIE_CLUSTER
  std::string token_file;  // empty: $GENIE_TOKEN_FILE, else none
  bool json = false;
};

// Prints to stdout, errors to stderr; returns an ExitCode.
int show_status(const StatusOptions& options);

}  // namespace genie::tools
