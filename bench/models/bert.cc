#include "bench/models/bert.h"

namespace genie::models {

BertLayerImpl::BertLayerImpl(const BertConfig& config)
    : attention(register_module("attention", Attention(config.width, config.heads))),
      mlp(register_module("mlp", Mlp(config.width, 4 * config.width))),
      norm1(register_module("norm1", layer_norm(config.width))),
      norm2(register_module("norm2", layer_norm(config.width))) {}

torch::Tensor BertLayerImpl::forward(torch::Tensor x, const torch::Tensor& mask) {
  x = norm1(x + attention->attend(x, x, mask));
  return norm2(x + mlp(x));
}

BertImpl::BertImpl(const BertConfig& config)
    : token_table(register_module("token_table", torch::nn::Embedding(config.vocabulary, config.width))),
      kind_table(register_module("kind_table", torch::nn::Embedding(config.kinds, config.width))),
      position_table(register_module("position_table", torch::nn::Embedding(config.context, config.width))),
      norm(register_module("norm", layer_norm(config.width))),
      pooler(register_module("pooler", torch::nn::Linear(config.width, config.width))) {
  for (int64_t layer = 0; layer < config.layers; ++layer) layers->push_back(BertLayer(config));
  register_module("layers", layers);
}

torch::Tensor BertImpl::forward(const torch::Tensor& tokens, const torch::Tensor& kinds, const torch::Tensor& present) {
  const auto positions = torch::arange(tokens.size(1), tokens.options());
  auto x = norm(token_table(tokens) + kind_table(kinds) + position_table(positions));
  const auto mask = present.unsqueeze(1).unsqueeze(1);
  for (const auto& layer : *layers) x = layer->as<BertLayer>()->forward(x, mask);
  return torch::tanh(pooler(x.select(1, 0)));
}

}  // namespace genie::models
