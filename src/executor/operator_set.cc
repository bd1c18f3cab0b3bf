#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/api/include/torch/version.h>
#include <xxhash.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "src/executor/executor.h"
#include "src/executor/libraries.h"
#include "src/executor/schema_hash.h"

namespace genie::executor {

namespace {

OperatorSet set_of(const std::vector<c10::OperatorName>& names) {
  std::vector<uint64_t> hashes;
  for (const auto& name : names) {
    // Other libraries' operators are checked one by one, when a template names them.
    if (name.name.rfind("aten::", 0) != 0) continue;
    if (auto op = c10::Dispatcher::singleton().findSchema(name)) hashes.push_back(schema_hash(op->schema()));
  }
  std::sort(hashes.begin(), hashes.end());
  return {TORCH_VERSION, XXH3_64bits(hashes.data(), hashes.size() * sizeof(uint64_t)),
          static_cast<uint32_t>(hashes.size())};
}

}  // namespace

// Every session asks, on both sides, and thousands of schemas take long to hash: remembered until operators come or go.
OperatorSet operator_set() {
  static std::mutex mutex;
  static OperatorSet known;
  static size_t known_names = 0;
  static uint32_t known_departures = 0;
  const std::lock_guard lock(mutex);
  const uint32_t gone = departures();
  const std::vector<c10::OperatorName> names = c10::Dispatcher::singleton().getAllOpNames();
  if (names.size() != known_names || gone != known_departures) {
    known = set_of(names);
    known_names = names.size();
    known_departures = gone;
  }
  return known;
}

int default_threads() { return at::get_num_threads(); }

}  // namespace genie::executor
