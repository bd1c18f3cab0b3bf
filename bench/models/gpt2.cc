#include "bench/models/gpt2.h"

#include <torch/nn/init.h>

#include <tuple>

namespace genie::models {

torch::Tensor Gpt2Cache::append_to(torch::Tensor& all, const torch::Tensor& more) const {
  if (style_ == Style::kCat) return all = all.defined() ? torch::cat({all, more}, 2) : more;
  if (!all.defined()) all = torch::empty({more.size(0), more.size(1), context_, more.size(3)}, more.options());
  all.narrow(2, length_, more.size(2)).copy_(more);
  return all.narrow(2, 0, length_ + more.size(2));
}

std::pair<torch::Tensor, torch::Tensor> Gpt2Cache::append(size_t layer, const torch::Tensor& keys,
                                                          const torch::Tensor& values) {
  Layer& here = layers_.at(layer);
  return {append_to(here.keys, keys), append_to(here.values, values)};
}

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

torch::Tensor Gpt2BlockImpl::forward(torch::Tensor x, Gpt2Cache* cache, size_t layer) {
  const auto parts = qkv(norm1(x)).chunk(3, -1);
  torch::Tensor keys = split_heads(parts[1], heads);
  torch::Tensor values = split_heads(parts[2], heads);
  const bool follows = cache != nullptr && cache->length() != 0;
  TORCH_CHECK(!follows || x.size(1) == 1, "behind other tokens there comes one at a time");
  if (cache != nullptr) std::tie(keys, values) = cache->append(layer, keys, values);
  // One token looks at all of them.
  const auto mixed = torch::scaled_dot_product_attention(
      split_heads(parts[0], heads), keys, values, {}, is_training() ? attention_dropout : 0.0, /*is_causal=*/!follows);
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

torch::Tensor Gpt2Impl::decode(const torch::Tensor& tokens, Gpt2Cache& cache) {
  const int64_t first = cache.length();
  const auto positions = torch::arange(first, first + tokens.size(1), tokens.options());
  auto x = dropout(token_table(tokens) + position_table(positions));
  for (size_t layer = 0; layer < blocks->size(); ++layer) {
    x = blocks->ptr<Gpt2BlockImpl>(layer)->forward(x, &cache, layer);
  }
  cache.advance(tokens.size(1));
  return torch::linear(norm(x.select(1, -1)), token_table->weight);
}

}  // namespace genie::models
