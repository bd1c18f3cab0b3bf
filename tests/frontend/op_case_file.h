// Calls written by hand, for operators whose arguments have to fit each other: op_cases.txt, which tells its grammar itself.
//
// Thread-safety: one thread. Errors: std::invalid_argument, naming the line.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <set>
#include <string>
#include <vector>

#include "tests/frontend/op_arguments.h"

namespace genie::test {

struct OpCase {
  c10::OperatorHandle op;
  std::vector<std::string> words;
  std::string line;
};

struct OpCases {
  std::vector<OpCase> calls;
  std::set<std::string> by_hand_only;  // base names, without "aten::"
};

OpCases read_cases(const std::string& path);
torch::jit::Stack make_arguments(const OpCase& call, Values& values);

}  // namespace genie::test
