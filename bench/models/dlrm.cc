#include "bench/models/dlrm.h"

#include <torch/nn/modules/activation.h>

namespace genie::models {
namespace {

// `in`, then every width of `hidden` behind a relu, then `out`.
torch::nn::Sequential perceptron(int64_t in, const std::vector<int64_t>& hidden, int64_t out) {
  torch::nn::Sequential made;
  for (const int64_t width : hidden) {
    made->push_back(torch::nn::Linear(in, width));
    made->push_back(torch::nn::ReLU());
    in = width;
  }
  made->push_back(torch::nn::Linear(in, out));
  return made;
}

}  // namespace

DlrmImpl::DlrmImpl(const DlrmConfig& config)
    : bottom(register_module("bottom", perceptron(config.numbers, config.bottom, config.width))),
      top(register_module("top",
                          perceptron(config.width + (config.tables + 1) * config.tables / 2, config.top, /*out=*/1))) {
  for (int64_t table = 0; table < config.tables; ++table) {
    tables->push_back(
        torch::nn::EmbeddingBag(torch::nn::EmbeddingBagOptions(config.rows, config.width).mode(torch::kSum)));
  }
  register_module("tables", tables);
  const auto pairs = torch::tril_indices(config.tables + 1, config.tables + 1, -1);
  rows = register_buffer("rows", pairs[0].clone());
  columns = register_buffer("columns", pairs[1].clone());
}

torch::Tensor DlrmImpl::forward(const torch::Tensor& numbers, const torch::Tensor& indices,
                                const torch::Tensor& offsets) {
  const auto dense = torch::relu(bottom->forward(numbers));
  std::vector<torch::Tensor> features{dense};
  for (size_t table = 0; table < tables->size(); ++table) {
    const auto which = static_cast<int64_t>(table);
    features.push_back(
        tables[table]->as<torch::nn::EmbeddingBag>()->forward(indices.select(0, which), offsets.select(0, which)));
  }
  const auto stacked = torch::stack(features, 1);
  const auto products = torch::bmm(stacked, stacked.transpose(1, 2));
  const auto pairs = products.index({torch::indexing::Slice(), rows, columns});
  return torch::sigmoid(top->forward(torch::cat({dense, pairs}, 1)));
}

}  // namespace genie::models
