// genie-bench: measures Genie beside its peers; a table for people, JSON for scripts.
//
// Exit codes: 0 measured, 1 a run failed or nothing was measured, 2 wrong usage.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "bench/benches.h"
#include "bench/e2e/memory_program.h"
#include "bench/e2e/model_names.h"
#include "bench/harness/plot.h"
#include "bench/transfer/end.h"
#include "bench/transfer/sizes.h"
#include "tools/subcommands.h"

namespace {

using genie::bench::Harness;
using genie::bench::Registration;

struct Subcommand {
  const char* name;
  const char* what;
  std::vector<std::string> transports = {};  // that --transport may name; none: there is no such option
};

const Subcommand kSubcommands[] = {
    {"capture", "capturing operations, beside eager and libtorch's lazy backend"},
    {"queue", "the lock-free queues, beside Boost.Lockfree, moodycamel and rte_ring"},
    {"transfer", "moving bytes: bandwidth, latency and message rate per transport", {"shm", "ucx", "verbs"}},
    {"invoke", "the round trip of one template invocation", {"shm", "ucx", "verbs", "embedded"}},
    {"upload", "bytes from client tensors to a node", {"shm", "ucx", "verbs", "embedded"}},
    {"fetch", "bytes from a node to client tensors", {"shm", "ucx", "verbs", "embedded"}},
    {"step", "a step that repeats: what its client does beyond capture", {"shm", "ucx", "verbs", "embedded"}},
    {"scale", "long traces, and many sessions on one node", {"shm", "ucx", "verbs"}},
    {"e2e", "whole models on a node, beside local eager", {"shm", "ucx", "verbs"}},
};

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

void add_model_option(CLI::App& command, genie::bench::Options& options) {
  std::vector<std::string> names = genie::bench::e2e_model_names();
  names.emplace_back("all");
  command.add_option("--model", options.models, "only this model's rows; may be repeated")->check(CLI::IsMember(names));
}

void add_transfer_options(CLI::App& command, genie::bench::Options& options) {
  command.add_option("--op", options.ops, "only this operation; may be repeated")
      ->check(CLI::IsMember({"write", "read", "send"}));
  command.add_option_function<std::string>(
      "--sizes",
      [&options](const std::string& text) {
        options.sizes = genie::bench::parse_sizes(text);
        if (options.sizes.empty())
          throw CLI::ValidationError("--sizes", "'" + text + "' is neither 8..1G nor 64,4K,1M");
      },
      "bytes of one transfer: 8..1G (each eight times the one before) or 64,4K,1M");
}

// Beside the JSON, where rows go over sizes.
bool write_plot(const Harness& harness, const std::string& json_path) {
  const std::string plot = genie::bench::plot_svg(harness.report());
  if (plot.empty()) return true;
  std::ofstream file(std::filesystem::path(json_path).replace_extension(".svg"));
  file << plot;
  file.close();
  return bool(file);
}

int run(const std::string& name, const genie::bench::Options& options, const std::string& json_path) {
  // Opened first: a long run must not end in a path that cannot be written.
  std::ofstream json;
  if (!json_path.empty()) {
    json.open(json_path);
    if (!json) {
      std::fprintf(stderr, "genie-bench: cannot write %s\n", json_path.c_str());
      return kExitUsage;
    }
  }
  Harness harness(name, options);
  for (const Registration* bench = Registration::find(name); bench != nullptr; bench = bench->next_of_name()) {
    bench->run(harness);
  }
  if (json.is_open()) {
    json << harness.report().dump(2) << '\n';
    json.close();
    if (!json || !write_plot(harness, json_path)) {
      std::fprintf(stderr, "genie-bench: writing %s failed\n", json_path.c_str());
      return kExitFailed;
    }
  }
  if (harness.row_count() == 0) {
    std::fprintf(stderr, "genie-bench: nothing was measured%s\n",
                 options.filter.empty() ? "" : "; does --filter match a row?");
    return kExitFailed;
  }
  return harness.failed() ? kExitFailed : 0;
}

}  // namespace

int main(int argc, char** argv) {
  // Other processes of benches.
  if (argc > 1 && std::string_view(argv[1]) == "transfer-partner") {
    return genie::bench::run_transfer_partner(argc - 2, argv + 2);
  }
  if (argc > 1 && std::string_view(argv[1]) == "memory-program") {
    return genie::bench::run_memory_program(argc - 2, argv + 2);
  }
  CLI::App app("Measures Genie beside its peers, alternately in the same run. ratio = ours / peer's.", "genie-bench");
  app.require_subcommand(1);
  app.set_version_flag("--version", GENIE_VERSION);
  genie::bench::Options options;
  options.table = stdout;
  std::string json_path;
  for (const Subcommand& subcommand : kSubcommands) {
    if (Registration::find(subcommand.name) == nullptr) continue;
    CLI::App* command = app.add_subcommand(subcommand.name, subcommand.what);
    command->add_option("--json", json_path,
                        "write the rows to this file, and plots of those over sizes beside it (.svg)");
    command->add_flag("--quick", options.quick, "the same rows in under a minute");
    command->add_option("--filter", options.filter, "only rows whose \"name key=value ...\" contains this text");
    if (!subcommand.transports.empty()) {
      command->add_option("--transport", options.transports, "only over this transport; may be repeated")
          ->check(CLI::IsMember(subcommand.transports));
    }
    if (std::string_view(subcommand.name) == "e2e") add_model_option(*command, options);
    if (std::string_view(subcommand.name) == "transfer") add_transfer_options(*command, options);
  }
  if (genie::tools::names_unknown_subcommand(app, argc, argv)) return kExitUsage;
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  // All of them: as if none had been named.
  if (std::ranges::find(options.models, "all") != options.models.end()) options.models.clear();
  try {
    return run(app.get_subcommands().front()->get_name(), options, json_path);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "genie-bench: %s\n", error.what());
    return kExitFailed;
  }
}
