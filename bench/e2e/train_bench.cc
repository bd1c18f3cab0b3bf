// genie-bench e2e, training: SGD steps on a node beside local eager with the same number of threads. The batch starts on this machine;
// the loss comes back to it, after every step or after every tenth: then steps may be captured while others run.
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/utils.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/benches.h"
#include "bench/models/resnet.h"
#include "bench/remote/place.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

constexpr uint64_t kSeed = 1;

struct CnnImpl : torch::nn::Module {
  CnnImpl() {
    register_module("conv1", conv1);
    register_module("norm1", norm1);
    register_module("conv2", conv2);
    register_module("head", head);
  }
  torch::Tensor forward(torch::Tensor x) {
    x = torch::max_pool2d(torch::relu(norm1(conv1(x))), 2);
    x = torch::max_pool2d(torch::relu(conv2(x)), 2);
    return head(x.flatten(1));
  }
  torch::nn::Conv2d conv1{torch::nn::Conv2dOptions(1, 16, 3).padding(1)};
  torch::nn::BatchNorm2d norm1{16};
  torch::nn::Conv2d conv2{torch::nn::Conv2dOptions(16, 32, 3).padding(1)};
  torch::nn::Linear head{32 * 7 * 7, 10};
};
TORCH_MODULE(Cnn);

// What is trained: a module, its forward and the shape of a batch.
struct Subject {
  std::string name;
  std::vector<int64_t> images;
  int64_t classes = 10;
  std::shared_ptr<torch::nn::Module> (*make)() = nullptr;
  at::Tensor (*forward)(torch::nn::Module& module, const at::Tensor& images) = nullptr;
  std::optional<double> target;  // of local eager's time
};

Subject cnn() {
  return {.name = "cnn",
          .images = {32, 1, 28, 28},
          .make = []() -> std::shared_ptr<torch::nn::Module> { return std::make_shared<CnnImpl>(); },
          .forward = [](torch::nn::Module& module,
                        const at::Tensor& images) { return module.as<CnnImpl>()->forward(images); }};
}

Subject resnet18(bool real) {
  const auto forward = [](torch::nn::Module& module, const at::Tensor& images) {
    return module.as<models::ResNetImpl>()->forward(images);
  };
  if (real) {
    return {.name = "resnet18",
            .images = {8, 3, 224, 224},
            .classes = 1000,
            .make = []() -> std::shared_ptr<torch::nn::Module> { return std::make_shared<models::ResNetImpl>(); },
            .forward = forward,
            .target = 1.05};
  }
  return {.name = "resnet18",
          .images = {8, 3, 32, 32},
          .make = []() -> std::shared_ptr<torch::nn::Module> {
            return std::make_shared<models::ResNetImpl>(models::ResNetConfig{.classes = 10, .width = 16});
          },
          .forward = forward};
}

class Trainer {
 public:
  Trainer(const Subject& subject, at::Device device) : subject_(subject), device_(device) {
    torch::manual_seed(kSeed);
    module_ = subject.make();
    module_->to(device);
    optimizer_.emplace(module_->parameters(), torch::optim::SGDOptions(0.01).momentum(0.9));
    images_ = torch::randn(subject.images);
    labels_ = torch::randint(0, subject.classes, {subject.images[0]}, torch::kLong);
  }
  // Of each of `steps`, after the last of which the loss is here.
  double step_ms(int steps) {
    const uint64_t start = now_ns();
    at::Tensor loss;
    for (int i = 0; i < steps; ++i) {
      optimizer_->zero_grad();
      loss = torch::cross_entropy_loss(subject_.forward(*module_, images_.to(device_)), labels_.to(device_));
      loss.backward();
      optimizer_->step();
    }
    losses_.push_back(loss.item<float>());
    return static_cast<double>(now_ns() - start) / 1e6 / steps;
  }
  const std::vector<float>& losses() const noexcept { return losses_; }

 private:
  const Subject& subject_;
  const at::Device device_;
  std::shared_ptr<torch::nn::Module> module_;
  std::optional<torch::optim::SGD> optimizer_;
  at::Tensor images_, labels_;
  std::vector<float> losses_;
};

// One of them may be a run ahead.
void compare(const std::vector<float>& remote, const std::vector<float>& local) {
  const size_t both = std::min(remote.size(), local.size());
  if (both == 0 || remote[both - 1] == local[both - 1]) return;
  throw std::runtime_error("the node's loss is " + std::to_string(remote[both - 1]) + ", local eager's " +
                           std::to_string(local[both - 1]));
}

void measure(Harness& harness, const Subject& subject, const std::string& transport, int values_every) {
  const Json params = {{"model", subject.name},
                       {"batch", subject.images[0]},
                       {"values_every", values_every},
                       {"transport", transport},
                       {"threads", kThreads}};
  if (!harness.wants("train_step.latency", params)) return;
  RemotePlace place(transport);
  Trainer remote(subject, place.device());
  Trainer local(subject, at::kCPU);
  const bool slow = subject.target.has_value();
  const size_t runs = slow ? 15 : 61;
  harness.row({.name = "train_step.latency", .params = params, .unit = "ms", .target = subject.target})
      .ours([&] { return remote.step_ms(values_every); })
      .peer("local eager",
            [&] {
              const double ms = local.step_ms(values_every);
              compare(remote.losses(), local.losses());
              return ms;
            })
      .warmup(slow ? 1 : 3)
      .runs(std::max<size_t>(harness.full_or_quick<size_t>(runs, 15) / static_cast<size_t>(values_every), 5))
      .measure();
}

void run_training(Harness& harness) {
  const Subject subjects[] = {cnn(), resnet18(!harness.quick())};
  for (const std::string& transport : harness.transports_or({"shm"})) {
    for (const Subject& subject : subjects) {
      for (const int values_every : {1, 10}) measure(harness, subject, transport, values_every);
    }
  }
}

const Registration kTraining("e2e", run_training);

}  // namespace
}  // namespace genie::bench
