#include "bench/models/gpt2.h"

#include <torch/nn/init.h>

namespace genie::models {

Gpt2BlockImpl::Gpt2BlockImpl(const Gpt2Config& config)
    : heads(config.heads),
      attention_dropout(config.dropout),
      norm1(register_module("norm1", layer_norm(config.width))),
      norm2(register_module("norm2", layer_norm(config.width))),
      qkv(register_module("qkv", torch::nn::Linear(config.width, 3 * config.width))),
      out(register_module("out", torch::nn::Linear(config.width, config.width))),
      up(register_module("up", torch::nn::Linear(config.width, 4 * config.width))),
      down(register_module("down", torch::nn::Linear(4 * config.width, config.width))),
      dropout(register_module("dropout", torch::nn::Dropout(config.dropout))) {}

torch::Tensor Gpt2BlockImpl::forward(torch::Tensor x) {
  const auto parts = qkv(norm1(x)).chunk(3, -1);
  const auto mixed = torch::scaled_dot_product_attention(split_heads(parts[0], heads), split_heads(parts[1], heads),
                                                         split_heads(parts[2], heads), {},
                                                         is_training() ? attention_dropout : 0.0, /*is_causal=*/true);
  x = x + dropout(out(join_heads(mixed)));
  return x + dropout(down(torch::gelu(up(norm2(x)), "tanh")));
}

Gpt2Impl::Gpt2Impl(const Gpt2Config& config)
    : token_table(register_module("token_table", torch::nn::Embedding(config.vocabulary, config.width))),
      position_table(register_module("position_table", torch::nn::Embedding(config.context, config.width))),
      dropout(register_module("dropout", torch::nn::Dropout(config.dropout))),
      norm(register_module("norm", layer_norm(config.width))) {
  torch::nn::init::normal_(token_table->weight, 0.0, 0.02);
  torch::nn::init::normal_(position_table->weight, 0.0, 0.02);
  for (int64_t layer = 0; layer < config.layers; ++layer) blocks->push_back(Gpt2Block(config));
  register_module("blocks", blocks);
}

torch::Tensor Gpt2Impl::forward(const torch::Tensor& tokens) {
  const auto positions = torch::arange(tokens.size(1), tokens.options());
  auto x = dropout(token_table(tokens) + position_table(positions));
  for (const auto& block : *blocks) x = block->as<Gpt2Block>()->forward(x);
  return torch::linear(norm(x), token_table->weight);
}

}  // namespace genie::models
