// genie-bench e2e, training: one SGD step of a small CNN on a node beside local eager with the same number
// of threads. The batch starts on this machine, and the loss comes back to it.
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <optional>
#include <string>

#include "bench/benches.h"
#include "bench/remote/place.h"
#include "datapath/base/clock.h"

namespace genie::bench {
namespace {

constexpr int64_t kBatch = 32;

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

class Trainer {
 public:
  explicit Trainer(at::Device device) : device_(device) {
    model_->to(device);
    optimizer_.emplace(model_->parameters(), torch::optim::SGDOptions(0.01).momentum(0.9));
  }
  double step_ms(const at::Tensor& images, const at::Tensor& labels) {
    const uint64_t start = now_ns();
    optimizer_->zero_grad();
    const at::Tensor loss = torch::cross_entropy_loss(model_->forward(images.to(device_)), labels.to(device_));
    loss.backward();
    optimizer_->step();
    last_loss_ = loss.item<float>();
    return static_cast<double>(now_ns() - start) / 1e6;
  }

 private:
  const at::Device device_;
  Cnn model_;
  std::optional<torch::optim::SGD> optimizer_;
  float last_loss_ = 0;
};

void run_training_over(const std::string& transport, Harness& harness) {
  const Json params = {{"model", "cnn"}, {"batch", kBatch}, {"transport", transport}, {"threads", kThreads}};
  if (!harness.wants("train_step.latency", params)) return;
  RemotePlace place(transport);
  torch::manual_seed(1);
  const at::Tensor images = torch::randn({kBatch, 1, 28, 28});
  const at::Tensor labels = torch::randint(0, 10, {kBatch}, torch::kLong);
  Trainer remote(place.device());
  Trainer local(at::kCPU);
  harness.row({.name = "train_step.latency", .params = params, .unit = "ms"})
      .ours([&] { return remote.step_ms(images, labels); })
      .peer("local eager", [&] { return local.step_ms(images, labels); })
      .warmup(3)
      .runs(harness.full_or_quick(61, 15))
      .measure();
}

void run_training(Harness& harness) {
  for (const std::string& transport : harness.transports_or({"shm"})) run_training_over(transport, harness);
}

const Registration kTraining("e2e", run_training);

}  // namespace
}  // namespace genie::bench
