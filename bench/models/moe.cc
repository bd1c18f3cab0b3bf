#include "bench/models/moe.h"

namespace genie::models {

ExpertsImpl::ExpertsImpl(const MoeConfig& config)
    : chosen(config.chosen),
      router(register_module("router",
                             torch::nn::Linear(torch::nn::LinearOptions(config.width, config.experts).bias(false)))) {
  for (int64_t expert = 0; expert < config.experts; ++expert) experts->push_back(Mlp(config.width, 4 * config.width));
  register_module("experts", experts);
}

torch::Tensor ExpertsImpl::forward(const torch::Tensor& x) {
  auto [weights, choices] = torch::topk(torch::softmax(router(x), -1), chosen);
  weights = weights / weights.sum(-1, /*keepdim=*/true);
  auto out = torch::zeros_like(x);
  for (size_t expert = 0; expert < experts->size(); ++expert) {
    const auto hits = torch::nonzero(choices == static_cast<int64_t>(expert));  // pairs of token and rank
    if (hits.size(0) == 0) continue;
    const auto tokens = hits.select(1, 0);
    const auto share = weights.index({tokens, hits.select(1, 1)}).unsqueeze(1);
    const auto answer = experts[expert]->as<Mlp>()->forward(x.index_select(0, tokens));
    out = out.index_add(0, tokens, answer * share);
  }
  return out;
}

MoeBlockImpl::MoeBlockImpl(const MoeConfig& config)
    : norm1(register_module("norm1", layer_norm(config.width))),
      norm2(register_module("norm2", layer_norm(config.width))),
      attention(register_module("attention", Attention(config.width, config.heads))),
      experts(register_module("experts", Experts(config))) {}

torch::Tensor MoeBlockImpl::forward(torch::Tensor x) {
  x = x + attention(norm1(x));
  return x + experts(norm2(x).flatten(0, 1)).view(x.sizes());
}

MoeImpl::MoeImpl(const MoeConfig& config)
    : table(register_module("table", torch::nn::Embedding(config.vocabulary, config.width))),
      norm(register_module("norm", layer_norm(config.width))),
      head(register_module("head", torch::nn::Linear(config.width, config.vocabulary))) {
  for (int64_t layer = 0; layer < config.layers; ++layer) blocks->push_back(MoeBlock(config));
  register_module("blocks", blocks);
}

torch::Tensor MoeImpl::forward(const torch::Tensor& tokens) {
  auto x = table(tokens);
  for (const auto& block : *blocks) x = block->as<MoeBlock>()->forward(x);
  return head(norm(x));
}

}  // namespace genie::models
