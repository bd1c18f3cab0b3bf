#include "bench/models/lstm.h"

namespace genie::models {

LstmModelImpl::LstmModelImpl(const LstmConfig& config)
    : table(register_module("table", torch::nn::Embedding(config.vocabulary, config.width))),
      lstm(register_module(
          "lstm", torch::nn::LSTM(torch::nn::LSTMOptions(config.width, config.width).num_layers(config.layers)))),
      head(register_module("head", torch::nn::Linear(config.width, config.vocabulary))) {}

torch::Tensor LstmModelImpl::forward(const torch::Tensor& tokens) {
  return head(std::get<0>(lstm->forward(table(tokens))));
}

}  // namespace genie::models
