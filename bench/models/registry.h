// The models of this folder by name, for whoever runs all of them: benches and tests.
//
// Purpose: each model at its real size, or reduced in depth and width so that a forward takes milliseconds. Weights and inputs
//   come from the process's seed: the same seed before make() gives the same model.
// Thread-safety: any thread. Ownership: a Model shares its module.
#pragma once

#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace genie::models {

enum class Scale : uint8_t { kReal, kReduced };

using Tensors = std::vector<torch::Tensor>;

struct Model {
  std::shared_ptr<torch::nn::Module> module;
  std::function<torch::Tensor(const Tensors& inputs)> forward;
};

struct Entry {
  std::string_view name;
  Model (*make)(Scale scale);
  Tensors (*inputs)(Scale scale);  // on the CPU; the batch is of a size at which a CPU answers within a second or two
  int64_t batch = 1;
  bool data_dependent = false;  // its forward looks at values, so that it flushes more than once
};

std::span<const Entry> entries();
// Null: there is no such model.
const Entry* find(std::string_view name);

}  // namespace genie::models
