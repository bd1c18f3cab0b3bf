#include "bench/models/transformer.h"

namespace genie::models {

torch::nn::LayerNorm layer_norm(int64_t width) { return torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})); }

torch::Tensor split_heads(const torch::Tensor& x, int64_t heads) {
  return x.view({x.size(0), x.size(1), heads, x.size(2) / heads}).transpose(1, 2);
}

torch::Tensor join_heads(const torch::Tensor& x) { return x.transpose(1, 2).flatten(2); }

AttentionImpl::AttentionImpl(int64_t width, int64_t heads, int64_t context_width)
    : heads(heads),
      query(register_module("query", torch::nn::Linear(width, width))),
      key(register_module("key", torch::nn::Linear(context_width > 0 ? context_width : width, width))),
      value(register_module("value", torch::nn::Linear(context_width > 0 ? context_width : width, width))),
      out(register_module("out", torch::nn::Linear(width, width))) {}

torch::Tensor AttentionImpl::attend(const torch::Tensor& x, const torch::Tensor& context, const torch::Tensor& mask) {
  const auto mixed = torch::scaled_dot_product_attention(split_heads(query(x), heads), split_heads(key(context), heads),
                                                         split_heads(value(context), heads),
                                                         mask.defined() ? std::optional(mask) : std::nullopt);
  return out(join_heads(mixed));
}

MlpImpl::MlpImpl(int64_t width, int64_t hidden)
    : up(register_module("up", torch::nn::Linear(width, hidden))),
      down(register_module("down", torch::nn::Linear(hidden, width))) {}

torch::Tensor MlpImpl::forward(const torch::Tensor& x) { return down(torch::gelu(up(x))); }

BlockImpl::BlockImpl(int64_t width, int64_t heads)
    : norm1(register_module("norm1", layer_norm(width))),
      norm2(register_module("norm2", layer_norm(width))),
      attention(register_module("attention", Attention(width, heads))),
      mlp(register_module("mlp", Mlp(width, 4 * width))) {}

torch::Tensor BlockImpl::forward(torch::Tensor x) {
  x = x + attention(norm1(x));
  return x + mlp(norm2(x));
}

}  // namespace genie::models
