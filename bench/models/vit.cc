#include "bench/models/vit.h"

namespace genie::models {

VitImpl::VitImpl(const VitConfig& config)
    : patches(register_module(
          "patches", torch::nn::Conv2d(torch::nn::Conv2dOptions(3, config.width, config.patch).stride(config.patch)))),
      class_token(register_parameter("class_token", torch::randn({1, 1, config.width}) * 0.02)),
      positions(register_parameter(
          "positions",
          torch::randn({1, 1 + (config.image / config.patch) * (config.image / config.patch), config.width}) * 0.02)),
      norm(register_module("norm", layer_norm(config.width))),
      head(register_module("head", torch::nn::Linear(config.width, config.classes))) {
  for (int64_t layer = 0; layer < config.layers; ++layer) blocks->push_back(Block(config.width, config.heads));
  register_module("blocks", blocks);
}

torch::Tensor VitImpl::features(const torch::Tensor& x) {
  const auto sequence = patches(x).flatten(2).transpose(1, 2);
  auto y = torch::cat({class_token.expand({x.size(0), -1, -1}), sequence}, 1) + positions;
  for (const auto& block : *blocks) y = block->as<Block>()->forward(y);
  return norm(y);
}

}  // namespace genie::models
