// GPT-2: a causal transformer whose output layer is its token table.
#pragma once

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/embedding.h>

#include <utility>
#include <vector>

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

// Keys and values of the tokens so far, [batch, heads, length, width / heads] in each layer, on the model's device.
class Gpt2Cache {
 public:
  // How room for a further token is made: by cat, or by writing into tensors of `context` tokens.
  enum class Style : uint8_t { kCat, kInPlace };

  explicit Gpt2Cache(Style style, const Gpt2Config& config = {})
      : style_(style), context_(config.context), layers_(static_cast<size_t>(config.layers)) {}

  int64_t length() const noexcept { return length_; }
  // Those of a layer, the new ones behind the others.
  std::pair<torch::Tensor, torch::Tensor> append(size_t layer, const torch::Tensor& keys, const torch::Tensor& values);
  // Every layer has appended so many.
  void advance(int64_t tokens) { length_ += tokens; }

 private:
  struct Layer {
    torch::Tensor keys, values;
  };
  torch::Tensor append_to(torch::Tensor& all, const torch::Tensor& more) const;

  const Style style_;
  const int64_t context_;
  std::vector<Layer> layers_;
  int64_t length_ = 0;
};

struct Gpt2BlockImpl : torch::nn::Module {
  explicit Gpt2BlockImpl(const Gpt2Config& config);
  // With a cache x are the tokens that follow those in it: one, or any number where it is empty.
  torch::Tensor forward(torch::Tensor x, Gpt2Cache* cache = nullptr, size_t layer = 0);

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
  // The tokens that follow those in the cache -> logits of the one after them [batch, vocabulary].
  torch::Tensor decode(const torch::Tensor& tokens, Gpt2Cache& cache);

  torch::nn::Embedding token_table, position_table;
  torch::nn::Dropout dropout;
  torch::nn::ModuleList blocks;
  torch::nn::LayerNorm norm;
};
TORCH_MODULE(Gpt2);

}  // namespace genie::models
