// Visual question answering: an image tower, a text tower, and layers in which the text looks at the image.
#pragma once

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>

#include "bench/models/vit.h"

namespace genie::models {

// The size of METER: ViT-B/16 and a text tower of 12 layers, fused by 6; the 3,129 answers of VQA v2.
struct VqaConfig {
  VitConfig image;
  int64_t vocabulary = 30522;
  int64_t context = 64;
  int64_t text_layers = 12;
  int64_t fusion_layers = 6;
  int64_t answers = 3129;
};

struct FusionLayerImpl : torch::nn::Module {
  FusionLayerImpl(int64_t width, int64_t heads);
  torch::Tensor forward(torch::Tensor text, const torch::Tensor& image);
  torch::nn::LayerNorm norm1, norm2, norm3;
  Attention self_attention, cross_attention;
  Mlp mlp;
};
TORCH_MODULE(FusionLayer);

struct VqaImpl : torch::nn::Module {
  explicit VqaImpl(const VqaConfig& config = {});
  // image: [batch, 3, side, side]; question: tokens [batch, length] -> a score per answer [batch, answers]
  torch::Tensor forward(const torch::Tensor& image, const torch::Tensor& question);
  Vit vision;
  torch::nn::Embedding token_table, position_table;
  torch::nn::ModuleList text, fusion;
  torch::nn::LayerNorm norm;
  torch::nn::Linear answer;
};
TORCH_MODULE(Vqa);

}  // namespace genie::models
