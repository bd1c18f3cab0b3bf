// What CLI11 leaves unsaid about subcommands.
//
// Thread-safety: one thread. Ownership: none.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

namespace genie::tools {

// Whether the first argument is neither a flag nor a subcommand; says so then. CLI11 would only say that one is missing.
inline bool names_unknown_subcommand(const CLI::App& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-' || argv[1][0] == '\0') return false;
  std::string known;
  for (const CLI::App* subcommand : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (subcommand->check_name(argv[1])) return false;
    known += (known.empty() ? "" : ", ") + subcommand->get_name();
  }
  std::fprintf(stderr, "%s: '%s' is no subcommand; there are: %s\n", app.get_name().c_str(), argv[1], known.c_str());
  return true;
}

}  // namespace genie::tools
