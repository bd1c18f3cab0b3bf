// The program `genie`: flags and subcommands.
#include <torch/headeronly/version.h>
#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>

#include "tools/cluster_status.h"
#include "tools/doctor/command.h"
#include "tools/exit_codes.h"
#include "tools/run_model.h"
#include "tools/subcommands.h"

namespace {

using genie::tools::RunOptions;
using genie::tools::StatusOptions;

constexpr const char* kFooter =
    "Exit codes: 0 done; 1 an internal error; 2 a wrong flag or argument; 3 the model or the input cannot be read;\n"
    "4 the cluster does not answer, or refuses us; 5 the model failed while it ran; 6 doctor: the worst line is a\n"
    "warning; 7 doctor: the worst line is a failure.";

constexpr const char* kTokenFile =
    "File with the token that the node asks for, as its own --token-file names it (default: $GENIE_TOKEN_FILE)";

void add_run(CLI::App& app, RunOptions& options) {
  CLI::App* run = app.add_subcommand("run", "Load a TorchScript model, call it, and say what came out");
  run->footer(kFooter);
  run->add_option("MODEL", options.model, "A file that torch.jit.save wrote (.pt)")->required();
  run->add_option("--cluster", options.cluster,
                  "Where the node is: embedded: (in this process), unix:/path.sock or tcp://host:port "
                  "(default: $GENIE_CLUSTER, then embedded:)");
  run->add_option("--token-file", options.token_file, kTokenFile);
  run->add_option("--device", options.device, "remote_accelerator:N, or cpu to run without Genie")
      ->capture_default_str();
  auto* random = run->add_option("--random", options.random,
                                 "One argument of the model, drawn at random: 1x3x224x224[:dtype], or scalar[:dtype]. "
                                 "Repeat it for further arguments. Integers are drawn from 0 to 9");
  auto* input = run->add_option("--input", options.input,
                                "A file that torch.save wrote: a tensor, or a tuple or list of the model's arguments");
  random->excludes(input);
  run->add_flag("--json", options.json, "Print one JSON object instead of text");
  run->add_option("--seed", options.seed, "Seed of the random inputs and of the model")->capture_default_str();
  run->add_option("--repeat", options.repeat, "Call the model this many times with the same arguments")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  run->add_option("--threads", options.threads, "Intra-op threads of this process (0: libtorch's default)")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
}

void add_status(CLI::App& app, StatusOptions& options) {
  CLI::App* status = app.add_subcommand("status", "Ask a node for its health, devices, sessions, memory and work");
  status->footer(kFooter);
  status->add_option("--cluster", options.cluster,
                     "Where the node is: unix:/path.sock or tcp://host:port (default: $GENIE_CLUSTER)");
  status->add_option("--token-file", options.token_file, kTokenFile);
  status->add_flag("--json", options.json, "Print one JSON object instead of text");
}

void add_doctor(CLI::App& app, genie::doctor::CommandOptions& options) {
  CLI::App* doctor =
      app.add_subcommand("doctor", "Look at this host: what stands in the way of a node, or of its speed");
  doctor->footer(
      "Each line is ok, warn (it works, but slower or with less) or fail, with what to do.\n"
      "Exit codes: 0 every line is ok; 6 the worst line is a warning; 7 the worst line is a failure;\n"
      "1 an internal error; 2 a wrong flag or configuration.");
  doctor->add_flag("--json", options.json, "Print one JSON object instead of text");
  doctor->add_option("--config", options.config, "The node's YAML file: its addresses, transport, threads and polling");
  doctor->add_option("--listen", options.listen,
                     "An address that the node is to listen on: unix:/path.sock, tcp://host:port");
  doctor->add_option("--transport", options.transport, "The transport that is wanted: shm, ucx, verbs, dpdk or auto");
  doctor->add_option("--root", options.root, "Look at the tree below this folder, recorded on another host")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  options.torch_version = TORCH_VERSION;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Genie: stock PyTorch programs on accelerators of other machines", "genie"};
  app.require_subcommand(1);
  app.footer(kFooter);
  app.set_version_flag("--version", GENIE_VERSION);
  RunOptions run;
  add_run(app, run);
  StatusOptions status;
  add_status(app, status);
  genie::doctor::CommandOptions doctor;
  add_doctor(app, doctor);
  if (genie::tools::names_unknown_subcommand(app, argc, argv)) return genie::tools::kExitUsage;
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? genie::tools::kExitOk : genie::tools::kExitUsage;
  }
  try {
    if (app.got_subcommand("doctor")) return genie::doctor::run_doctor(doctor);
    if (app.got_subcommand("status")) return genie::tools::show_status(status);
    return genie::tools::run_model(run);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "genie: internal error: %s\n", error.what());
    return genie::tools::kExitInternal;
  }
}
