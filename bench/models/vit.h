// ViT: an image as a sequence of patches.
#pragma once

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/conv.h>

#include "bench/models/transformer.h"

namespace genie::models {

// ViT-B/16: 86 M parameters.
struct VitConfig {
  int64_t image = 224;  // pixels on a side
  int64_t patch = 16;
  int64_t width = 768;
  int64_t heads = 12;
  int64_t layers = 12;
  int64_t classes = 1000;
};

struct VitImpl : torch::nn::Module {
  explicit VitImpl(const VitConfig& config = {});
  // x: [batch, 3, image, image] -> [batch, classes]
  torch::Tensor forward(const torch::Tensor& x) { return head(features(x).select(1, 0)); }
  // -> [batch, 1 + patches, width]; the first is the class token.
  torch::Tensor features(const torch::Tensor& x);
  torch::nn::Conv2d patches;
  torch::Tensor class_token, positions;
  torch::nn::ModuleList blocks;
  torch::nn::LayerNorm norm;
  torch::nn::Linear head;
};
TORCH_MODULE(Vit);

}  // namespace genie::models
