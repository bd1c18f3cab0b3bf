#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/api/include/torch/version.h>
#include <xxhash.h>

#include <algorithm>

#include "src/executor/executor.h"
#include "src/executor/schema_hash.h"

namespace genie::executor {

OperatorSet operator_set() {
  std::vector<uint64_t> hashes;
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    // Other libraries' operators are checked one by one, when a template names them.
    if (name.name.rfind("aten::", 0) != 0) continue;
    if (auto op = c10::Dispatcher::singleton().findSchema(name)) hashes.push_back(schema_hash(op->schema()));
  }
  std::sort(hashes.begin(), hashes.end());
  return {TORCH_VERSION, XXH3_64bits(hashes.data(), hashes.size() * sizeof(uint64_t)),
          static_cast<uint32_t>(hashes.size())};
}

int default_threads() { return at::get_num_threads(); }

}  // namespace genie::executor
