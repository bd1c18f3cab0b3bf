// genie-bench step: what a step that repeats costs its client beyond capture, on a node over shared memory.
//
// A program warms up, then the same step is repeated with other values and, where it decodes, other lengths. Rows, per step:
//   step.client_us          of pruning, matching with a plan and a template, and submitting
//   step.message_bytes      of all its submissions
//   step.operators          captured
//   step.templates          registered after the warm-up
//   step.shapes_inferred    that libtorch's meta kernels had to answer
// The last three count: they have no noise.
#include <c10/core/InferenceMode.h>
#include <torch/nn/functional/loss.h>
#include <torch/optim/sgd.h>
#include <torch/utils.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "bench/benches.h"
#include "bench/models/gpt2.h"
#include "bench/models/registry.h"
#include "bench/remote/place.h"

namespace genie::bench {
namespace {

using Style = models::Gpt2Cache::Style;

constexpr uint64_t kSeed = 7;

// So deep that a step of its decoding has about 1,000 operators.
models::Gpt2Config deep_gpt2() { return {.vocabulary = 64, .context = 1024, .width = 48, .heads = 12, .layers = 62}; }

// One step, from its inputs on this machine to its result on this machine.
class Program {
 public:
  virtual ~Program() = default;
  virtual void step() = 0;
  virtual int warm_up() const { return 4; }
};

class Decoding final : public Program {
 public:
  Decoding(at::Device device, Style style) : cache_(style, deep_gpt2()) {
    model_->eval();
    model_->to(device);
    token_ = torch::arange(1, 9, torch::kLong).unsqueeze(0).to(device);
  }
  void step() override {
    const c10::InferenceMode inference;
    token_ = model_->decode(token_, cache_).argmax(-1, /*keepdim=*/true);
    (void)token_.item<int64_t>();
  }

 private:
  models::Gpt2 model_{deep_gpt2()};
  models::Gpt2Cache cache_;
  at::Tensor token_;
};

// A convolutional network on an image that no step has seen.
class Classifying final : public Program {
 public:
  explicit Classifying(at::Device device)
      : device_(device), model_(models::find("resnet50")->make(models::Scale::kReduced)) {
    model_.module->to(device);
  }
  void step() override {
    const c10::InferenceMode inference;
    (void)model_.forward({torch::randn({1, 3, 32, 32}).to(device_)}).cpu();
  }

 private:
  const at::Device device_;
  models::Model model_;
};

class Training final : public Program {
 public:
  explicit Training(at::Device device) : device_(device) {
    model_->to(device);
    optimizer_.emplace(model_->parameters(), torch::optim::SGDOptions(0.01).momentum(0.9));
  }
  void step() override {
    const at::Tensor tokens = torch::randint(0, 64, {1, 17}, torch::kLong);
    optimizer_->zero_grad();
    const at::Tensor logits = model_->forward(tokens.narrow(1, 0, 16).to(device_));
    const at::Tensor loss =
        torch::cross_entropy_loss(logits.flatten(0, 1), tokens.narrow(1, 1, 16).flatten().to(device_));
    loss.backward();
    optimizer_->step();
    (void)loss.item<float>();
  }

 private:
  const at::Device device_;
  models::Gpt2 model_{[] {
    models::Gpt2Config config = deep_gpt2();
    config.layers = 12;
    config.dropout = 0;
    return config;
  }()};
  std::optional<torch::optim::SGD> optimizer_;
};

struct Entry {
  const char* name;
  std::unique_ptr<Program> (*make)(at::Device device);
};

constexpr Entry kPrograms[] = {
    {"decode_cat",
     [](at::Device device) -> std::unique_ptr<Program> { return std::make_unique<Decoding>(device, Style::kCat); }},
    {"decode_in_place",
     [](at::Device device) -> std::unique_ptr<Program> { return std::make_unique<Decoding>(device, Style::kInPlace); }},
    {"classify", [](at::Device device) -> std::unique_ptr<Program> { return std::make_unique<Classifying>(device); }},
    {"train", [](at::Device device) -> std::unique_ptr<Program> { return std::make_unique<Training>(device); }},
};

uint64_t plan_ns(const Stats& stats) {
  uint64_t sum = 0;
  for (const auto& [name, time] : stats.time_by_op) sum += time.plan_ns;
  return sum;
}

// What one step adds to the session's statistics.
using Measure = std::function<double(const Stats& before, const Stats& after)>;

struct Figure {
  const char* name;
  const char* unit;
  std::optional<double> target;
  Measure measure;
};

const Figure kFigures[] = {
    {"step.client_us", "us", 30,
     [](const Stats& before, const Stats& after) {
       return static_cast<double>(plan_ns(after) - plan_ns(before)) / 1'000;
     }},
    {"step.message_bytes", "bytes", 2048,
     [](const Stats& before, const Stats& after) {
       return static_cast<double>(after.message_bytes - before.message_bytes);
     }},
    {"step.operators", "captured", std::nullopt,
     [](const Stats& before, const Stats& after) {
       return static_cast<double>(after.captured_ops - before.captured_ops);
     }},
    {"step.templates", "registered", 0,
     [](const Stats& before, const Stats& after) {
       return static_cast<double>(after.templates_registered - before.templates_registered);
     }},
    {"step.shapes_inferred", "by meta kernels", std::nullopt,
     [](const Stats& before, const Stats& after) {
       return static_cast<double>(after.shapes_meta - before.shapes_meta);
     }},
};

void measure(Harness& harness, RemotePlace& place, const Entry& entry) {
  std::unique_ptr<Program> program;
  for (const Figure& figure : kFigures) {
    const Json params = {{"program", entry.name}, {"transport", place.transport()}};
    if (!harness.wants(figure.name, params)) continue;
    if (program == nullptr) {
      torch::manual_seed(kSeed);
      program = entry.make(place.device());
      for (int i = 0; i < program->warm_up(); ++i) program->step();
    }
    harness
        .row({.name = figure.name,
              .params = params,
              .unit = figure.unit,
              .target = figure.target,
              .target_of = TargetOf::kMedian})
        .ours([&] {
          set_timing(true);
          const Stats before = place.session().stats();
          program->step();
          const Stats after = place.session().stats();
          set_timing(false);
          return figure.measure(before, after);
        })
        .runs(harness.full_or_quick<size_t>(101, 15))
        .measure();
  }
}

void run_step(Harness& harness) {
  for (const std::string& transport : harness.transports_or({"shm"})) {
    RemotePlace place(transport);
    for (const Entry& entry : kPrograms) measure(harness, place, entry);
  }
}

const Registration kStep("step", run_step);

}  // namespace
}  // namespace genie::bench
