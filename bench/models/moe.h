// A transformer whose perceptrons are a mixture of experts: each token goes to the experts that its router chose, so that shapes
// depend on values.
#pragma once

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>

#include "bench/models/transformer.h"

namespace genie::models {

// Layers as wide as Switch-Base's, 8 experts of which each token takes 2, as in Mixtral: 176 M parameters.
struct MoeConfig {
  int64_t vocabulary = 10'000;
  int64_t width = 768;
  int64_t heads = 12;
  int64_t layers = 4;
  int64_t experts = 8;
  int64_t chosen = 2;
};

struct ExpertsImpl : torch::nn::Module {
  explicit ExpertsImpl(const MoeConfig& config);
  // x: [tokens, width] -> same
  torch::Tensor forward(const torch::Tensor& x);
  const int64_t chosen;
  torch::nn::Linear router;
  torch::nn::ModuleList experts;
};
TORCH_MODULE(Experts);

struct MoeBlockImpl : torch::nn::Module {
  explicit MoeBlockImpl(const MoeConfig& config);
  torch::Tensor forward(torch::Tensor x);
  torch::nn::LayerNorm norm1, norm2;
  Attention attention;
  Experts experts;
};
TORCH_MODULE(MoeBlock);

struct MoeImpl : torch::nn::Module {
  explicit MoeImpl(const MoeConfig& config = {});
  // tokens: [batch, length] -> logits [batch, length, vocabulary]
  torch::Tensor forward(const torch::Tensor& tokens);
  torch::nn::Embedding table;
  torch::nn::ModuleList blocks;
  torch::nn::LayerNorm norm;
  torch::nn::Linear head;
};
TORCH_MODULE(Moe);

}  // namespace genie::models
