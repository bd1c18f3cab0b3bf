// BERT: a bidirectional transformer, normalized after each residual, with a pooled first token.
#pragma once

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>

#include "bench/models/transformer.h"

namespace genie::models {

// BERT base: 110 M parameters.
struct BertConfig {
  int64_t vocabulary = 30522;
  int64_t context = 512;
  int64_t kinds = 2;
  int64_t width = 768;
  int64_t heads = 12;
  int64_t layers = 12;
};

struct BertLayerImpl : torch::nn::Module {
  explicit BertLayerImpl(const BertConfig& config);
  torch::Tensor forward(torch::Tensor x, const torch::Tensor& mask);
  Attention attention;
  Mlp mlp;
  torch::nn::LayerNorm norm1, norm2;
};
TORCH_MODULE(BertLayer);

struct BertImpl : torch::nn::Module {
  explicit BertImpl(const BertConfig& config = {});
  // tokens, kinds: [batch, length]; present: bool [batch, length] -> the pooled first token [batch, width]
  torch::Tensor forward(const torch::Tensor& tokens, const torch::Tensor& kinds, const torch::Tensor& present);
  torch::nn::Embedding token_table, kind_table, position_table;
  torch::nn::LayerNorm norm;
  torch::nn::ModuleList layers;
  torch::nn::Linear pooler;
};
TORCH_MODULE(Bert);

}  // namespace genie::models
