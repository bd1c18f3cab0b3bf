// ResNet-18/34 in torch::nn, random weights from the process's seed.
#pragma once

#include <torch/nn.h>

#include <vector>

namespace genie::models {

struct BasicBlockImpl : torch::nn::Module {
  BasicBlockImpl(int64_t in_channels, int64_t out_channels, int64_t stride);
  torch::Tensor forward(torch::Tensor x);
  torch::nn::Conv2d conv1{nullptr}, conv2{nullptr}, shortcut{nullptr};
  torch::nn::BatchNorm2d bn1{nullptr}, bn2{nullptr}, bn_shortcut{nullptr};
};
TORCH_MODULE(BasicBlock);

struct ResNetImpl : torch::nn::Module {
  // blocks: how many basic blocks in each of the four stages ({2, 2, 2, 2} is ResNet-18).
  explicit ResNetImpl(std::vector<int64_t> blocks = {2, 2, 2, 2}, int64_t classes = 1000, int64_t width = 64);
  // x: [batch, 3, height, width] -> [batch, classes]
  torch::Tensor forward(torch::Tensor x);
  torch::nn::Conv2d stem{nullptr};
  torch::nn::BatchNorm2d bn{nullptr};
  torch::nn::Sequential stages;
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(ResNet);

}  // namespace genie::models
