// `genie run`: loads a TorchScript model and calls it, on a node or locally.
//
// Purpose: the part of the program `genie` that needs libtorch, apart from its flags. This header is free of torch.
// Thread-safety: one call at a time. Ownership: nothing outlives the call.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/exit_codes.h"

namespace genie::tools {

struct RunOptions {
  std::string model;
  std::string cluster;     // empty: $GENIE_CLUSTER, then embedded:
  std::string token_file;  // empty: $GENIE_TOKEN_FILE, else none
  std::string device = "remote_accelerator:0";
  std::vector<std::string> random;  // 1x3x224x224[:dtype] each
  std::string input;                // a file that torch.save wrote: a tensor, or a list or tuple of arguments
  bool json = false;
  uint64_t seed = 0;
  int repeat = 1;
  int threads = 0;  // 0: libtorch's default
};

// "1x3x224x224:float16"; a scalar is "scalar".
struct RandomInput {
  std::vector<int64_t> sizes;
  std::string dtype = "float32";
};

// Empty when `text` is none; `why` then says what is wrong with it.
std::optional<RandomInput> parse_random_input(const std::string& text, std::string& why);

// Prints to stdout what it did, errors to stderr; returns an ExitCode.
int run_model(const RunOptions& options);

}  // namespace genie::tools
