// genie-bench e2e, models in torch::nn with random weights: single forwards on a node beside local eager with the same number of
// threads. A forward is timed from the inputs on this machine to the output on this machine; both sides'
// outputs must be the same bits before anything is timed. With --quick the models are reduced in depth and width.
#include <c10/core/InferenceMode.h>
#include <torch/utils.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "bench/benches.h"
#include "bench/e2e/memory_program.h"
#include "bench/e2e/model_names.h"
#include "bench/models/registry.h"
#include "bench/remote/place.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

constexpr uint64_t kSeed = 7;

// Of local eager's time, at real size.
std::optional<double> target_of(std::string_view model) {
  if (model == "bert" || model == "resnet50" || model == "vit_b16") return 1.03;
  if (model == "dlrm") return 1.25;
  return std::nullopt;
}

double ms_since(uint64_t start) { return static_cast<double>(now_ns() - start) / 1e6; }

// The same model twice: here, and on the node.
class Pair {
 public:
  Pair(const models::Entry& entry, models::Scale scale, at::Device device) : device_(device) {
    torch::manual_seed(kSeed);
    local_ = entry.make(scale);
    torch::manual_seed(kSeed);
    remote_ = entry.make(scale);
    inputs_ = entry.inputs(scale);
    const uint64_t start = now_ns();
    remote_.module->to(device_);
    genie::synchronize();
    upload_ms_ = ms_since(start);
  }

  double local_ms() {
    const uint64_t start = now_ns();
    local_.forward(inputs_);
    return ms_since(start);
  }
  double remote_ms() {
    const uint64_t start = now_ns();
    run_remote();
    return ms_since(start);
  }

  // Throws when the two sides differ. What there is to say of the model otherwise.
  std::string compare() {
    const at::Tensor expected = local_.forward(inputs_);
    run_remote();  // templates travel, shapes are learned
    const Stats before = genie::stats();
    const at::Tensor got = run_remote();
    const uint64_t flushes = genie::stats().flushes - before.flushes;
    if (!at::equal(expected, got)) {
      throw std::runtime_error("the node's output differs from local eager's by up to " +
                               std::to_string((expected - got).abs().max().item<double>()));
    }
    int64_t parameters = 0;
    for (const at::Tensor& parameter : local_.module->parameters()) parameters += parameter.numel();
    return "the same bits as local eager; " + std::to_string(parameters) + " parameters, sent in " +
           std::to_string(static_cast<int64_t>(upload_ms_)) + " ms; " + std::to_string(flushes) +
           (flushes == 1 ? " flush" : " flushes") + " per forward";
  }

 private:
  at::Tensor run_remote() {
    models::Tensors there;
    for (const at::Tensor& input : inputs_) there.push_back(input.to(device_));
    return remote_.forward(there).cpu();
  }

  const at::Device device_;
  models::Model local_, remote_;
  models::Tensors inputs_;
  double upload_ms_ = 0;
};

void run_models_over(const std::string& transport, Harness& harness) {
  RemotePlace place(transport);
  const auto scale = harness.full_or_quick(models::Scale::kReal, models::Scale::kReduced);
  for (const models::Entry& entry : models::entries()) {
    const Json params = {{"model", std::string(entry.name)},
                         {"size", scale == models::Scale::kReal ? "real" : "reduced"},
                         {"batch", entry.batch},
                         {"transport", transport},
                         {"threads", kThreads}};
    if (!harness.wants("forward.latency", params)) continue;
    // Made by the first run: what a model lacks fails its own row only.
    std::optional<Pair> pair;
    const auto begin = [&] {
      if (pair) return;
      pair.emplace(entry, scale, place.device());
      harness.note(std::string(entry.name) + ": " + pair->compare());
    };
    const auto target = scale == models::Scale::kReal ? target_of(entry.name) : std::nullopt;
    harness.row({.name = "forward.latency", .params = params, .unit = "ms", .target = target})
        .ours([&] {
          begin();
          return pair->remote_ms();
        })
        .peer("local eager",
              [&] {
                begin();
                return pair->local_ms();
              })
        .runs(harness.full_or_quick(15, 9))
        .measure();
  }
}

void run_models(Harness& harness) {
  const c10::InferenceMode inference;
  for (const std::string& transport : harness.transports_or({"shm"})) run_models_over(transport, harness);
}

const Registration kModels("e2e", run_models);

}  // namespace

std::vector<std::string> e2e_model_names() {
  std::vector<std::string> names{"char_gpt", "resnet18", "encoder", "cnn"};
  for (const models::Entry& entry : models::entries()) names.emplace_back(entry.name);
  for (const std::string& name : memory_models()) {
    if (std::ranges::find(names, name) == names.end()) names.push_back(name);
  }
  return names;
}

}  // namespace genie::bench
