#include "bench/models/resnet.h"

namespace genie::models {
namespace {

torch::nn::Conv2d conv(int64_t in_channels, int64_t out_channels, int64_t kernel, int64_t stride) {
  return torch::nn::Conv2d(
      torch::nn::Conv2dOptions(in_channels, out_channels, kernel).stride(stride).padding(kernel / 2).bias(false));
}

}  // namespace

BasicBlockImpl::BasicBlockImpl(int64_t in_channels, int64_t width, int64_t stride)
    : conv1(register_module("conv1", conv(in_channels, width, 3, stride))),
      conv2(register_module("conv2", conv(width, width, 3, 1))),
      bn1(register_module("bn1", torch::nn::BatchNorm2d(width))),
      bn2(register_module("bn2", torch::nn::BatchNorm2d(width))) {
  if (stride == 1 && in_channels == width) return;
  shortcut = register_module("shortcut", conv(in_channels, width, 1, stride));
  bn_shortcut = register_module("bn_shortcut", torch::nn::BatchNorm2d(width));
}

torch::Tensor BasicBlockImpl::forward(torch::Tensor x) {
  auto y = bn2(conv2(torch::relu(bn1(conv1(x)))));
  return torch::relu(y + (shortcut.is_empty() ? x : bn_shortcut(shortcut(x))));
}

BottleneckImpl::BottleneckImpl(int64_t in_channels, int64_t width, int64_t stride)
    : conv1(register_module("conv1", conv(in_channels, width, 1, 1))),
      conv2(register_module("conv2", conv(width, width, 3, stride))),
      conv3(register_module("conv3", conv(width, kExpansion * width, 1, 1))),
      bn1(register_module("bn1", torch::nn::BatchNorm2d(width))),
      bn2(register_module("bn2", torch::nn::BatchNorm2d(width))),
      bn3(register_module("bn3", torch::nn::BatchNorm2d(kExpansion * width))) {
  if (stride == 1 && in_channels == kExpansion * width) return;
  shortcut = register_module("shortcut", conv(in_channels, kExpansion * width, 1, stride));
  bn_shortcut = register_module("bn_shortcut", torch::nn::BatchNorm2d(kExpansion * width));
}

torch::Tensor BottleneckImpl::forward(torch::Tensor x) {
  auto y = torch::relu(bn1(conv1(x)));
  y = bn3(conv3(torch::relu(bn2(conv2(y)))));
  return torch::relu(y + (shortcut.is_empty() ? x : bn_shortcut(shortcut(x))));
}

ResNetImpl::ResNetImpl(const ResNetConfig& config)
    : stem(register_module("stem", conv(3, config.width, 7, 2))),
      bn(register_module("bn", torch::nn::BatchNorm2d(config.width))) {
  int64_t channels = config.width;
  for (size_t stage = 0; stage < config.blocks.size(); ++stage) {
    const int64_t width = config.width << stage;
    for (int64_t block = 0; block < config.blocks[stage]; ++block) {
      const int64_t stride = stage > 0 && block == 0 ? 2 : 1;
      if (config.bottlenecks) {
        stages->push_back(Bottleneck(channels, width, stride));
        channels = BottleneckImpl::kExpansion * width;
      } else {
        stages->push_back(BasicBlock(channels, width, stride));
        channels = width;
      }
    }
  }
  register_module("stages", stages);
  head = register_module("head", torch::nn::Linear(channels, config.classes));
}

torch::Tensor ResNetImpl::forward(torch::Tensor x) {
  x = torch::max_pool2d(torch::relu(bn(stem(x))), 3, 2, 1);
  x = stages->forward(x);
  return head(torch::adaptive_avg_pool2d(x, {1, 1}).flatten(1));
}

}  // namespace genie::models
