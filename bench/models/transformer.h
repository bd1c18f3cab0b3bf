// The pieces that transformers are made of, for the models of this folder.
//
// Attention goes through scaled_dot_product_attention, as models of today have it. Layouts are [batch, length, width].
#pragma once

#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

namespace genie::models {

// Attention with projections of its own for query, key and value.
struct AttentionImpl : torch::nn::Module {
  // context_width: of what keys and values are made from; 0: as wide as the queries.
  AttentionImpl(int64_t width, int64_t heads, int64_t context_width = 0);
  // Over x itself.
  torch::Tensor forward(const torch::Tensor& x) { return attend(x, x, {}); }
  // mask: undefined, or bool that can be broadcast to [batch, heads, length, context length], true where to look.
  torch::Tensor attend(const torch::Tensor& x, const torch::Tensor& context, const torch::Tensor& mask);

  const int64_t heads;
  torch::nn::Linear query, key, value, out;
};
TORCH_MODULE(Attention);

struct MlpImpl : torch::nn::Module {
  MlpImpl(int64_t width, int64_t hidden);
  torch::Tensor forward(const torch::Tensor& x);
  torch::nn::Linear up, down;
};
TORCH_MODULE(Mlp);

// Pre-norm: what ViT and most models after GPT-2 stack.
struct BlockImpl : torch::nn::Module {
  BlockImpl(int64_t width, int64_t heads);
  torch::Tensor forward(torch::Tensor x);
  torch::nn::LayerNorm norm1, norm2;
  Attention attention;
  Mlp mlp;
};
TORCH_MODULE(Block);

// A layer norm over the last dimension.
torch::nn::LayerNorm layer_norm(int64_t width);
// [batch, length, width] -> [batch, heads, length, width / heads]
torch::Tensor split_heads(const torch::Tensor& x, int64_t heads);
// and back
torch::Tensor join_heads(const torch::Tensor& x);

}  // namespace genie::models
