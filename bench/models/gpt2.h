// GPT-2: a causal transformer whose output layer is its token table.
#pragma once

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/embedding.h>

#include "bench/models/transformer.h"

namespace genie::models {

// GPT-2 small: 124 M parameters.
struct Gpt2Config {
  int64_t vocabulary = 50257;
  int64_t context = 1024;
  int64_t width = 768;
  int64_t heads = 12;
  int64_t layers = 12;
  double dropout = 0.1;
};

struct Gpt2BlockImpl : torch::nn::Module {
  explicit Gpt2BlockImpl(const Gpt2Config& config);
  torch::Tensor forward(torch::Tensor x);

  const int64_t heads;
  const double attention_dropout;
  torch::nn::LayerNorm norm1, norm2;
  torch::nn::Linear qkv, out, up, down;  // one projection for query, key and value
  torch::nn::Dropout dropout;
};
TORCH_MODULE(Gpt2Block);

struct Gpt2Impl : torch::nn::Module {
  explicit Gpt2Impl(const Gpt2Config& config = {});
  // tokens: [batch, length] -> logits of the next token [batch, length, vocabulary]
  torch::Tensor forward(const torch::Tensor& tokens);

  torch::nn::Embedding token_table, position_table;
  torch::nn::Dropout dropout;
  torch::nn::ModuleList blocks;
  torch::nn::LayerNorm norm;
};
TORCH_MODULE(Gpt2);

}  // namespace genie::models
