#include "bench/models/resnet.h"

namespace genie::models {
namespace {

torch::nn::Conv2d conv(int64_t in_channels, int64_t out_channels, int64_t kernel, int64_t stride) {
  return torch::nn::Conv2d(
      torch::nn::Conv2dOptions(in_channels, out_channels, kernel).stride(stride).padding(kernel / 2).bias(false));
}

}  // namespace

BasicBlockImpl::BasicBlockImpl(int64_t in_channels, int64_t out_channels, int64_t stride)
    : conv1(register_module("conv1", conv(in_channels, out_channels, 3, stride))),
      conv2(register_module("conv2", conv(out_channels, out_channels, 3, 1))),
      bn1(register_module("bn1", torch::nn::BatchNorm2d(out_channels))),
      bn2(register_module("bn2", torch::nn::BatchNorm2d(out_channels))) {
  if (stride == 1 && in_channels == out_channels) return;
  shortcut = register_module("shortcut", conv(in_channels, out_channels, 1, stride));
  bn_shortcut = register_module("bn_shortcut", torch::nn::BatchNorm2d(out_channels));
}

torch::Tensor BasicBlockImpl::forward(torch::Tensor x) {
  auto y = bn2(conv2(torch::relu(bn1(conv1(x)))));
  return torch::relu(y + (shortcut.is_empty() ? x : bn_shortcut(shortcut(x))));
}

ResNetImpl::ResNetImpl(std::vector<int64_t> blocks, int64_t classes, int64_t width)
    : stem(register_module("stem", conv(3, width, 7, 2))), bn(register_module("bn", torch::nn::BatchNorm2d(width))) {
  int64_t channels = width;
  for (size_t stage = 0; stage < blocks.size(); ++stage) {
    const int64_t out_channels = width << stage;
    for (int64_t block = 0; block < blocks[stage]; ++block) {
      stages->push_back(BasicBlock(channels, out_channels, stage > 0 && block == 0 ? 2 : 1));
      channels = out_channels;
    }
  }
  register_module("stages", stages);
  head = register_module("head", torch::nn::Linear(channels, classes));
}

torch::Tensor ResNetImpl::forward(torch::Tensor x) {
  x = torch::max_pool2d(torch::relu(bn(stem(x))), 3, 2, 1);
  x = stages->forward(x);
  return head(torch::adaptive_avg_pool2d(x, {1, 1}).flatten(1));
}

}  // namespace genie::models
