// A language model of LSTM layers.
#pragma once

#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/rnn.h>

namespace genie::models {

// The medium model of Zaremba et al. for Penn Treebank: 20 M parameters.
struct LstmConfig {
  int64_t vocabulary = 10'000;
  int64_t width = 650;
  int64_t layers = 2;
};

struct LstmModelImpl : torch::nn::Module {
  explicit LstmModelImpl(const LstmConfig& config = {});
  // tokens: [length, batch] -> logits [length, batch, vocabulary]
  torch::Tensor forward(const torch::Tensor& tokens);
  torch::nn::Embedding table;
  torch::nn::LSTM lstm;
  torch::nn::Linear head;
};
TORCH_MODULE(LstmModel);

}  // namespace genie::models
