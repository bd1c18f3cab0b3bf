#include "bench/models/vqa.h"

namespace genie::models {

FusionLayerImpl::FusionLayerImpl(int64_t width, int64_t heads)
    : norm1(register_module("norm1", layer_norm(width))),
      norm2(register_module("norm2", layer_norm(width))),
      norm3(register_module("norm3", layer_norm(width))),
      self_attention(register_module("self_attention", Attention(width, heads))),
      cross_attention(register_module("cross_attention", Attention(width, heads))),
      mlp(register_module("mlp", Mlp(width, 4 * width))) {}

torch::Tensor FusionLayerImpl::forward(torch::Tensor text, const torch::Tensor& image) {
  text = text + self_attention(norm1(text));
  text = text + cross_attention->attend(norm2(text), image, {});
  return text + mlp(norm3(text));
}

VqaImpl::VqaImpl(const VqaConfig& config)
    : vision(register_module("vision", Vit(config.image))),
      token_table(register_module("token_table", torch::nn::Embedding(config.vocabulary, config.image.width))),
      position_table(register_module("position_table", torch::nn::Embedding(config.context, config.image.width))),
      norm(register_module("norm", layer_norm(config.image.width))),
      answer(register_module("answer", torch::nn::Linear(config.image.width, config.answers))) {
  const int64_t width = config.image.width;
  const int64_t heads = config.image.heads;
  for (int64_t layer = 0; layer < config.text_layers; ++layer) text->push_back(Block(width, heads));
  for (int64_t layer = 0; layer < config.fusion_layers; ++layer) fusion->push_back(FusionLayer(width, heads));
  register_module("text", text);
  register_module("fusion", fusion);
}

torch::Tensor VqaImpl::forward(const torch::Tensor& image, const torch::Tensor& question) {
  const auto seen = vision->features(image);
  auto x = token_table(question) + position_table(torch::arange(question.size(1), question.options()));
  for (const auto& block : *text) x = block->as<Block>()->forward(x);
  for (const auto& layer : *fusion) x = layer->as<FusionLayer>()->forward(x, seen);
  return answer(norm(x).mean(1));
}

}  // namespace genie::models
