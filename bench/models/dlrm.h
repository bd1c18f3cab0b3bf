// DLRM: a recommender of embedding bags, their pairwise products and two perceptrons.
#pragma once

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <vector>

namespace genie::models {

// Criteo's 26 categories and 13 numbers. Its largest tables have millions of rows; here all have the same number.
struct DlrmConfig {
  int64_t tables = 26;
  int64_t rows = 100'000;
  int64_t width = 64;
  int64_t numbers = 13;
  std::vector<int64_t> bottom = {512, 256};
  std::vector<int64_t> top = {512, 256};
};

struct DlrmImpl : torch::nn::Module {
  explicit DlrmImpl(const DlrmConfig& config = {});
  // numbers: [batch, numbers]; indices: [tables, all bags' entries]; offsets: [tables, batch], where each bag begins
  // -> probabilities [batch, 1]
  torch::Tensor forward(const torch::Tensor& numbers, const torch::Tensor& indices, const torch::Tensor& offsets);
  torch::nn::ModuleList tables;
  torch::nn::Sequential bottom, top;
  torch::Tensor rows, columns;  // of the pairs
};
TORCH_MODULE(Dlrm);

}  // namespace genie::models
