// `genie doctor`: the doctor as a program.
//
// Thread-safety: one call at a time. Ownership: nothing outlives the call.
#pragma once

#include <string>
#include <vector>

namespace genie::doctor {

// Beside what every subcommand may exit with.
enum ExitCode : int { kExitOk = 0, kExitUsage = 2, kExitWarn = 6, kExitFail = 7 };

struct CommandOptions {
  std::string config;               // of a node; flags win over it
  std::vector<std::string> listen;  // empty: the configuration's
  std::string transport;
  std::string root = "/";
  std::string torch_version;
  bool json = false;
};

// Prints to stdout, errors to stderr; returns an ExitCode.
int run_doctor(const CommandOptions& options);

}  // namespace genie::doctor
