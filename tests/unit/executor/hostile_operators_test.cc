// Operators whose kernels trust their operands: honest calls pass, hostile ones end with an error instead of a crash.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <set>

#include "src/executor/guard_tables.h"
#include "src/executor/guards.h"
#include "tests/unit/executor/one_call.h"

namespace genie::executor {
namespace {

using Values = std::vector<c10::IValue>;
using Ints = std::vector<int64_t>;
using at::Tensor;

Tensor floats(at::IntArrayRef sizes) { return at::randn(sizes); }
Tensor positive(at::IntArrayRef sizes) { return at::randn(sizes).abs(); }
Tensor longs(std::initializer_list<int64_t> values) {
  return at::tensor(at::ArrayRef<int64_t>(values.begin(), values.size()), at::kLong);
}
c10::IValue none() { return {}; }
c10::IValue list(std::vector<Tensor> tensors) { return c10::IValue(tensors); }
c10::IValue flags(std::initializer_list<bool> values) { return c10::List<bool>(values); }

// What to put in the place of one operand of an honest call.
struct Twist {
  size_t operand;
  c10::IValue value;
};

struct Row {
  const char* name;
  Values honest;
  std::vector<Twist> twists;
  const char* overload = "";
};

void expect_guarded(const Row& row) {
  SCOPED_TRACE(row.name);
  const Status honest = test::call(row.name, row.overload, row.honest);
  EXPECT_TRUE(honest.ok()) << honest.to_string();
  for (size_t i = 0; i < row.twists.size(); ++i) {
    Values hostile = row.honest;
    hostile[row.twists[i].operand] = row.twists[i].value;
    const Status answered = test::call(row.name, row.overload, hostile);
    EXPECT_EQ(answered.code(), Errc::kOpFailed) << "twist " << i << ": " << answered.to_string();
    EXPECT_NE(answered.text().find("the node checks this before"), std::string_view::npos)
        << "twist " << i << ": " << answered.to_string();
  }
}

constexpr int64_t kHuge = int64_t{1} << 33;

std::vector<Row> normalization_rows() {
  const Tensor x = floats({2, 3, 4});
  const Tensor c = floats({3});
  const Tensor v = positive({3});
  const Tensor few = floats({1});
  std::vector<Row> rows;
  rows.push_back({"aten::native_batch_norm", {x, c, c, c, v, true, 0.1, 1e-5}, {{1, few}, {3, few}, {0, few}}});
  rows.push_back({"aten::native_batch_norm", {x, c, c, c, v, false, 0.1, 1e-5}, {{3, none()}, {4, few}}});
  rows.push_back({"aten::_native_batch_norm_legit", {x, c, c, c, v, true, 0.1, 1e-5}, {{2, few}, {4, few}}});
  rows.push_back({"aten::_native_batch_norm_legit_functional", {x, c, c, c, v, true, 0.1, 1e-5}, {{1, few}, {3, few}}});
  rows.push_back({"aten::_native_batch_norm_legit_no_training", {x, c, c, c, v, 0.1, 1e-5}, {{1, few}, {4, few}}});
  rows.push_back({"aten::_native_batch_norm_legit", {x, c, c, true, 0.1, 1e-5}, {{1, few}, {3, false}}, "no_stats"});
  rows.push_back({"aten::_batch_norm_with_update", {x, c, c, c, v, 0.1, 1e-5}, {{1, few}, {4, few}}});
  rows.push_back({"aten::_batch_norm_with_update_functional", {x, c, c, c, v, 0.1, 1e-5}, {{1, few}, {4, few}}});
  rows.push_back({"aten::_batch_norm_no_update", {x, c, c, c, v, 0.1, 1e-5}, {{1, few}, {3, none()}}});
  rows.push_back({"aten::batch_norm_update_stats", {x, c, v, 0.1}, {{1, few}, {2, few}}});
  rows.push_back({"aten::native_batch_norm_backward",
                  {x, x, c, c, v, c, v, true, 1e-5, flags({true, true, true})},
                  {{0, few}, {2, few}, {5, few}, {6, none()}, {7, false}}});
  rows.back().twists.back() = {5, few};
  rows.push_back({"aten::batch_norm_backward",
                  {x, x, c, c, v, c, v, true, 1e-5, flags({true, true, true}), at::zeros({0}, at::kByte)},
                  {{0, few}, {2, few}, {5, few}, {6, none()}}});
  rows.push_back(
      {"aten::native_layer_norm_backward",
       {x, x, Ints{4}, floats({2, 3, 1}), positive({2, 3, 1}), floats({4}), floats({4}), flags({true, true, true})},
       {{0, few}, {2, Ints{4, 4, 4, 4}}, {3, few}, {4, few}}});
  rows.push_back({"aten::native_group_norm_backward",
                  {x, x, floats({2, 3}), positive({2, 3}), c, 2, 3, 4, 3, flags({true, true, true})},
                  {{0, few}, {2, few}, {3, few}, {4, few}, {5, 200}, {7, 4000}, {8, 0}}});
  rows.push_back({"aten::_weight_norm_interface", {floats({4, 3}), floats({4, 1}), 0}, {{0, floats({8, 3})}, {2, 1}}});
  rows.push_back({"aten::_weight_norm_interface_backward",
                  {floats({4, 3}), floats({4, 3}), floats({4, 1}), positive({4, 1}), 0},
                  {{0, few}, {2, few}, {3, few}, {4, 7}}});
  return rows;
}

std::vector<Row> pooling_rows() {
  const Tensor in = floats({1, 2, 4, 4});
  const Tensor out = floats({1, 2, 2, 2});
  const Tensor in3 = floats({1, 2, 4, 4, 4});
  const Tensor out3 = floats({1, 2, 2, 2, 2});
  const Tensor places = longs({0, 2, 8, 10, 0, 2, 8, 10}).view({1, 2, 2, 2});
  const Tensor places3 = at::zeros({1, 2, 2, 2, 2}, at::kLong);
  const Ints two{2, 2};
  const Ints zero{0, 0};
  const Ints one{1, 1};
  const Tensor wild = at::zeros({1, 2, 2, 2}, at::kLong).fill_(kHuge);
  const Tensor wild3 = at::zeros({1, 2, 2, 2, 2}, at::kLong).fill_(-kHuge);
  std::vector<Row> rows;
  rows.push_back({"aten::max_pool2d_with_indices_backward",
                  {out, in, two, two, zero, one, false, places},
                  {{7, wild}, {7, longs({1})}, {1, floats({1, 1, 4, 4})}}});
  rows.push_back({"aten::max_pool3d_with_indices_backward",
                  {out3, in3, Ints{2, 2, 2}, Ints{2, 2, 2}, Ints{0, 0, 0}, Ints{1, 1, 1}, false, places3},
                  {{7, wild3}, {1, floats({1, 1, 4, 4, 4})}}});
  rows.push_back({"aten::adaptive_max_pool2d_backward", {out, in, places}, {{2, wild}, {1, floats({1, 1, 4, 4})}}});
  rows.push_back(
      {"aten::adaptive_max_pool3d_backward", {out3, in3, places3}, {{2, wild3}, {1, floats({1, 1, 4, 4, 4})}}});
  rows.push_back({"aten::fractional_max_pool2d_backward", {out, in, two, two, places}, {{3, Ints{}}, {4, wild}}});
  rows.push_back({"aten::fractional_max_pool3d_backward",
                  {out3, in3, Ints{2, 2, 2}, Ints{2, 2, 2}, places3},
                  {{3, Ints{}}, {4, wild3}}});
  rows.push_back(
      {"aten::_adaptive_avg_pool2d_backward", {out, in}, {{1, floats({0, 2, 4, 4})}, {1, floats({1, 2, 0, 4})}}});
  rows.push_back({"aten::_adaptive_avg_pool3d_backward", {out3, in3}, {{1, floats({1, 1, 4, 4, 4})}}});
  rows.push_back(
      {"aten::avg_pool2d_backward", {out, in, two, two, zero, false, true, none()}, {{1, floats({0, 2, 4, 4})}}});
  rows.push_back({"aten::avg_pool3d_backward",
                  {out3, in3, Ints{2, 2, 2}, Ints{2, 2, 2}, Ints{0, 0, 0}, false, true, none()},
                  {{1, floats({0, 2, 4, 4, 4})}}});
  const Tensor padded = floats({1, 2, 6});
  for (const char* name : {"aten::reflection_pad1d_backward", "aten::replication_pad1d_backward"})
    rows.push_back({name,
                    {padded, floats({1, 2, 4}), Ints{1, 1}},
                    {{1, floats({1, 4})}, {2, Ints{}}, {2, Ints{int64_t{1} << 60, 2 - (int64_t{1} << 60)}}}});
  for (const char* name : {"aten::reflection_pad2d_backward", "aten::replication_pad2d_backward"})
    rows.push_back({name, {floats({1, 2, 6, 6}), in, Ints{1, 1, 1, 1}}, {{0, out}, {1, floats({3, 2, 4, 4})}}});
  for (const char* name : {"aten::reflection_pad3d_backward", "aten::replication_pad3d_backward"})
    rows.push_back({name, {floats({1, 2, 6, 6, 6}), in3, Ints(6, 1)}, {{0, out3}, {1, floats({3, 2, 4, 4, 4})}}});
  rows.push_back({"aten::unfold_backward", {floats({3, 2}), Ints{4}, 0, 2, 1}, {{1, Ints{12}}, {3, 10}, {4, 0}}});
  return rows;
}

std::vector<Row> loss_rows() {
  const Tensor x = floats({3, 4});
  const Tensor one = at::ones({});
  const Tensor classes = longs({0, 3, 1});
  std::vector<Row> rows;
  for (const char* name : {"aten::_softmax_backward_data", "aten::_log_softmax_backward_data"})
    rows.push_back({name, {x, x, 1, static_cast<int64_t>(at::kFloat)}, {{1, floats({4})}, {0, floats({3, 1})}}});
  const Tensor scores = floats({2, 3, 5, 5});
  rows.push_back({"aten::_masked_softmax",
                  {scores, at::zeros({5, 5}, at::kBool), 3, 0},
                  {{0, floats({2, 3, 5, 0})}, {1, at::zeros({9, 5}, at::kBool)}, {3, 2}, {3, 9}}});
  rows.push_back({"aten::_masked_softmax_backward",
                  {scores, scores, at::zeros({2, 3, 5, 5}, at::kBool), 3},
                  {{1, x}, {2, at::zeros({5}, at::kBool)}}});
  rows.push_back({"aten::nll_loss_backward",
                  {one, x, classes, none(), 1, -100, one},
                  {{2, longs({2048, 0, 0})}, {3, floats({1})}, {0, floats({3})}, {4, 0}, {6, floats({0})}}});
  rows.push_back(
      {"aten::nll_loss2d_backward",
       {floats({2, 2, 2}), floats({2, 3, 2, 2}), at::ones({2, 2, 2}, at::kLong), none(), 0, -100, one},
       {{0, floats({2, 2, 1})}, {1, floats({2, 3, 1, 2})}, {2, at::zeros({2, 2, 2}, at::kLong).fill_(kHuge)}}});
  rows.push_back({"aten::multi_margin_loss_backward",
                  {one, x, classes, 1, 1.0, none(), 1},
                  {{0, floats({0})}, {6, 0}, {2, longs({1})}}});
  rows.push_back({"aten::multilabel_margin_loss_backward",
                  {one, x, at::zeros({3, 4}, at::kLong), 1, at::zeros({3, 4})},
                  {{0, floats({0})}, {4, floats({})}, {2, longs({0})}}});
  const Tensor probs = floats({5, 2, 4});
  rows.push_back({"aten::_ctc_loss",
                  {probs, longs({1, 2, 2, 3}).view({2, 2}), Ints{5, 5}, Ints{2, 2}, 0, false},
                  {{1, longs({1, 2, 2, 4}).view({2, 2})},
                   {1, longs({1, -9, 2, 3}).view({2, 2})},
                   {2, Ints{5, 50}},
                   {3, Ints{2, 3}},
                   {3, Ints{2}},
                   {4, 4},
                   {1, longs({1, 2, 3})}}});
  rows.push_back({"aten::_ctc_loss_backward",
                  {floats({2}), probs, longs({1, 2, 2, 3}).view({2, 2}), Ints{5, 5}, Ints{2, 2}, floats({2}),
                   floats({2, 5, 5}), 0, false},
                  {{0, floats({1})}, {1, floats({5, 3, 4})}, {5, floats({1})}, {6, floats({2, 5, 2})}, {7, -1}}});
  return rows;
}

std::vector<Row> embedding_rows() {
  const Tensor table = floats({6, 3});
  const Tensor picks = longs({0, 1, 2, 5});
  const Tensor offsets = longs({0, 2});
  const Tensor bags = longs({0, 0, 1, 1});
  const Tensor sizes = longs({2, 2});
  const Tensor nothing = at::zeros({0}, at::kLong);
  const Tensor grad = floats({2, 3});
  const Tensor wild = longs({0, 1, kHuge, 2});
  std::vector<Row> rows;
  rows.push_back({"aten::embedding_dense_backward",
                  {floats({4, 3}), picks, 6, -1, true},
                  {{1, wild}, {1, longs({0, 1, 2, -7})}, {2, 3}, {2, -1}, {0, floats({3, 3})}}});
  rows.push_back({"aten::embedding_renorm_", {table, picks, 1.0, 2.0}, {{1, wild}, {0, floats({4})}}});
  rows.push_back({"aten::embedding_renorm", {table, picks, 1.0, 2.0}, {{1, wild}}});
  for (const char* name : {"aten::_embedding_bag", "aten::_embedding_bag_forward_only"}) {
    rows.push_back({name,
                    {table, picks, offsets, false, 0, false, none(), false, -1},
                    {{1, wild}, {2, nothing}, {2, longs({0, 9})}, {2, longs({2, 0})}, {4, 7}, {6, floats({1})}}});
    rows.push_back({name,
                    {table, nothing, longs({0}), false, 0, false, none(), false, -1},
                    {{0, at::zeros({0, int64_t{1} << 27})}}});
  }
  rows.push_back(
      {"aten::_embedding_bag_backward",
       {grad, picks, offsets, bags, sizes, nothing, 6, false, 0, false, none(), -1},
       {{1, wild}, {3, longs({0, 0, 1, 9})}, {6, 2}, {0, floats({1, 3})}, {10, floats({1})}, {2, longs({0, 9})}}});
  rows.push_back({"aten::_embedding_bag_backward",
                  {grad, picks, offsets, nothing, sizes, nothing, 6, false, 0, false, none(), -1},
                  {{0, floats({1, 3})}, {2, nothing}}});
  rows.push_back({"aten::_embedding_bag_dense_backward",
                  {grad, picks, bags, sizes, nothing, 6, false, 1, none(), -1},
                  {{1, wild}, {2, longs({0})}, {3, nothing}, {5, 1}, {7, 2}}});
  rows.push_back({"aten::_embedding_bag_per_sample_weights_backward",
                  {grad, table, picks, offsets, bags, 0, -1},
                  {{2, wild}, {4, longs({0, 0, 1, 9})}, {1, floats({6, 4})}, {3, longs({0, 9})}}});
  const Tensor data = floats({5});
  rows.push_back({"aten::segment_reduce",
                  {data, "sum", longs({2, 3}), none(), none(), 0, true, none()},
                  {{2, longs({2, 2048})}, {2, longs({-2, 3})}, {5, 1}, {4, longs({0, 5})}}});
  rows.push_back({"aten::segment_reduce",
                  {data, "max", none(), none(), longs({0, 2, 5}), 0, true, none()},
                  {{4, longs({0, kHuge, 5})}, {4, longs({0, 4, 2})}, {4, nothing}}});
  rows.push_back({"aten::_segment_reduce_backward",
                  {grad.select(1, 0), grad.select(1, 0), data, "sum", longs({2, 3}), none(), 0, none()},
                  {{0, floats({3})}, {4, longs({2, 2048})}, {2, floats({2})}, {6, 3}}});
  rows.push_back(
      {"aten::repeat_interleave", {longs({1, 2, 3}), 6}, {{1, 3}, {0, longs({kHuge, 3 - kHuge, 3})}}, "Tensor"});
  return rows;
}

std::vector<Row> attention_rows() {
  const Tensor q = floats({2, 3, 5, 8});
  const Tensor k = floats({2, 3, 6, 8});
  std::vector<Row> rows;
  rows.push_back({"aten::_scaled_dot_product_flash_attention_for_cpu",
                  {q, k, k, 0.0, false, floats({5, 6}), none()},
                  {{1, floats({1, 3, 6, 8})},
                   {2, floats({2, 3, 2, 8})},
                   {1, floats({2, 3, 6, 4})},
                   {5, floats({5, 2})},
                   {5, floats({6})},
                   {0, floats({5, 8})},
                   {2, floats({2, 3, 6, 8}).to(at::kDouble)}}});
  rows.push_back({"aten::_scaled_dot_product_flash_attention_for_cpu_backward",
                  {q, q, k, k, q, floats({2, 3, 5}), 0.0, false, none(), none()},
                  {{0, floats({2, 3, 1, 8})},
                   {4, floats({2, 3, 1, 8})},
                   {5, floats({2, 3, 1})},
                   {3, floats({2, 3, 2, 8})},
                   {8, floats({1, 2})}}});
  const Tensor x = floats({2, 3, 8});
  const Tensor square = floats({8, 8});
  const Tensor bias = floats({8});
  rows.push_back({"aten::_transformer_encoder_layer_fwd",
                  {x,    8,    2,    floats({24, 8}), floats({24}), square,          bias, false,  false, 1e-5, bias,
                   bias, bias, bias, floats({16, 8}), floats({16}), floats({8, 16}), bias, none(), none()},
                  {{2, 0},
                   {1, 16},
                   {3, square},
                   {4, bias},
                   {5, floats({1, 8})},
                   {10, floats({1})},
                   {15, bias},
                   {16, square},
                   {4, at::zeros({24}, at::kByte)},
                   {0, floats({2, 3, 4})}}});
  rows.push_back({"aten::_native_multi_head_attention",
                  {x, x, x, 8, 2, floats({24, 8}), floats({24}), square, bias, none(), true, true, none()},
                  {{4, 0}, {5, square}, {6, bias}, {8, floats({1})}, {1, floats({1, 3, 8})}, {2, floats({2, 1, 8})}}});
  rows.push_back({"aten::_transform_bias_rescale_qkv",
                  {floats({2, 3, 24}), floats({24}), 2},
                  {{0, floats({0, 1, 24})}, {1, bias}, {2, 0}}});
  return rows;
}

std::vector<Row> geometry_rows() {
  const Tensor in = floats({2, 3, 5, 5});
  const Tensor grid = at::zeros({2, 4, 4, 2});
  const Tensor in3 = floats({2, 3, 4, 4, 4});
  const Tensor grid3 = at::zeros({2, 2, 2, 2, 3});
  const Tensor points = floats({4, 2});
  const Tensor spectrum = at::randn({4, 5}, at::kComplexFloat);
  std::vector<Row> rows;
  rows.push_back({"aten::grid_sampler_2d_backward",
                  {floats({2, 3, 4, 4}), in, grid, 0, 0, false, flags({true, true})},
                  {{0, floats({2, 3, 2, 4})}, {1, floats({1, 3, 5, 5})}, {2, grid.div(0.0)}, {3, 9}, {4, 1000}}});
  rows.push_back({"aten::grid_sampler_3d_backward",
                  {floats({2, 3, 2, 2, 2}), in3, grid3, 0, 0, false, flags({true, true})},
                  {{0, floats({2, 3, 1, 2, 2})}, {2, at::zeros({2, 9, 2, 2, 3})}, {3, 1000}}});
  rows.push_back({"aten::_cdist_backward",
                  {floats({4, 4}), points, points, 2.0, positive({4, 4})},
                  {{0, floats({4, 3})}, {1, floats({5, 2})}, {2, floats({4, 7})}, {4, floats({1, 4})}}});
  rows.push_back({"aten::_pdist_forward", {points, 2.0}, {{0, floats({5, 1, 0})}, {0, at::zeros({kHuge, 0})}}});
  rows.push_back({"aten::_pdist_forward", {floats({0, 3}), 2.0}, {}});
  rows.push_back({"aten::_pdist_backward",
                  {floats({6}), points, 2.0, positive({6})},
                  {{0, floats({0})}, {1, floats({5, 5})}, {3, floats({10})}}});
  rows.push_back({"aten::_fft_c2c",
                  {spectrum, Ints{0, 1}, 0, true},
                  {{1, Ints{-kHuge}}, {1, Ints{2}}, {1, Ints{1, 1}}, {1, Ints{-1}}}});
  const Tensor endless = at::zeros({kHuge, 0});
  rows.push_back({"aten::unbind_copy", {floats({3, 2}), 0}, {{0, endless}}, "int"});
  for (const char* name : {"aten::split_copy", "aten::unsafe_split"})
    rows.push_back({name, {floats({3, 2}), 2, 0}, {{0, endless}, {1, -1}}, "Tensor"});
  const Tensor manifold = at::zeros({0, kHuge});
  for (const char* name : {"aten::_histogramdd_bin_edges", "aten::_histogramdd_from_bin_cts"})
    rows.push_back({name, {floats({3, 2}), Ints{4, 4}, none(), none(), false}, {{0, manifold}, {0, floats({})}}});
  rows.push_back({"aten::_fft_r2c", {floats({4, 5}), Ints{1}, 0, true}, {{1, Ints{-kHuge}}, {1, Ints{-2}}, {2, 99}}});
  rows.push_back({"aten::_fft_c2r", {spectrum, Ints{1}, 0, 8}, {{1, Ints{-2}}, {3, 80}, {3, 0}, {1, Ints{}}}});
  for (const char* name :
       {"aten::_upsample_bilinear2d_aa", "aten::_upsample_bicubic2d_aa", "aten::_upsample_lanczos2d_aa"})
    rows.push_back(
        {name, {floats({1, 2, 5, 6}), Ints{2, 9}, false, 0.5, 1.5}, {{3, 0.2}, {4, 1e-30}, {3, std::nan("")}}});
  for (const char* name : {"aten::_upsample_bilinear2d_aa_backward", "aten::_upsample_bicubic2d_aa_backward",
                           "aten::_upsample_lanczos2d_aa_backward"})
    rows.push_back({name,
                    {floats({1, 2, 2, 9}), Ints{2, 9}, Ints{1, 2, 5, 6}, false, 0.5, 1.5},
                    {{4, 0.2}, {5, -1.0}, {2, Ints{1}}}});
  const Ints one{1, 1};
  const Tensor image = floats({1, 2, 5, 5});
  const Tensor weight = floats({3, 2, 2, 2});
  rows.push_back({"aten::convolution",
                  {image, weight, none(), one, Ints{0, 0}, one, false, Ints{0, 0}, 1},
                  {{3, Ints{0, 1}}, {4, Ints{0, kHuge}}, {5, Ints{kHuge, 1}}, {8, 0}}});
  rows.push_back({"aten::convolution_backward",
                  {floats({1, 3, 4, 4}), image, weight, none(), one, Ints{0, 0}, one, false, Ints{0, 0}, 1,
                   flags({true, true, false})},
                  {{4, Ints{0, 1}}, {8, Ints{kHuge, 3}}, {9, 0}}});
  return rows;
}

std::vector<Row> number_rows() {
  const Tensor least = longs({INT64_MIN, 6});
  const Tensor small = longs({5, 0});
  std::vector<Row> rows;
  rows.push_back(
      {"aten::arange", {0, 10, 2, none(), none(), none(), none()}, {{0, INT64_MAX}, {1, INT64_MIN}}, "start_step"});
  rows.push_back({"aten::range", {0, 10, 2, none(), none(), none(), none()}, {{0, INT64_MAX}, {1, INT64_MIN}}, "step"});
  rows.push_back({"aten::range",
                  {0, 10, 2, static_cast<int64_t>(at::kByte), none(), none(), none()},
                  {{2, 0.5}, {0, 1e300}},
                  "step"});
  for (const char* name : {"aten::rrelu_with_noise", "aten::rrelu_with_noise_"})
    rows.push_back({name, {floats({4}), floats({4}), 0.1, 0.3, true, none()}, {{1, floats({1})}}});
  rows.push_back({"aten::rrelu_with_noise",
                  {floats({4}), floats({4}), 0.1, 0.3, true, none(), floats({4})},
                  {{6, floats({1})}},
                  "out"});
  rows.push_back(
      {"aten::smooth_l1_loss_backward", {floats({4}), floats({4}), floats({4}), 0, 1.0}, {{1, longs({1, 2, 3, 4})}}});
  for (const char* name : {"aten::gcd", "aten::gcd_", "aten::lcm", "aten::lcm_"})
    rows.push_back({name, {small.clone(), longs({4, 2})}, {{0, least}, {1, least}}});
  rows.push_back({"aten::binomial",
                  {at::ones({2}).mul(5), at::ones({2}).mul(0.5)},
                  {{0, at::ones({2}).div(0.0)}, {1, at::ones({2}).mul(9)}, {0, small}}});
  for (const char* kind :
       {"chebyshev_polynomial_t", "chebyshev_polynomial_u", "chebyshev_polynomial_v", "chebyshev_polynomial_w",
        "hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p",
        "shifted_chebyshev_polynomial_t", "shifted_chebyshev_polynomial_u", "shifted_chebyshev_polynomial_v",
        "shifted_chebyshev_polynomial_w"}) {
    static std::set<std::string> names;
    const char* name = names.insert(std::string("aten::special_") + kind).first->c_str();
    rows.push_back({name, {floats({2}), longs({1, 3})}, {{1, longs({1, kHuge})}}});
    rows.push_back({name, {longs({1, 2}).to(at::kUInt16), longs({1, 3}).to(at::kUInt16)}, {}});
  }
  const Tensor square = floats({3, 3});
  const Tensor pivots = longs({1, 3, 3}).to(at::kInt);
  const Tensor wild = longs({1, 70000, -5}).to(at::kInt);
  const Tensor b = floats({3, 2});
  rows.push_back(
      {"aten::linalg_lu_solve", {square, pivots, b, true, false}, {{1, wild}, {1, longs({0, 1, 2}).to(at::kInt)}}});
  rows.push_back({"aten::linalg_ldl_solve",
                  {square, longs({1, -3, -3}).to(at::kInt), b, false},
                  {{1, wild}, {1, longs({1, 2, -1}).to(at::kInt)}, {1, longs({0, 1, 2}).to(at::kInt)}}});
  rows.push_back({"aten::linalg_lstsq", {square, b, none(), "gelsy"}, {{1, floats({3, 0})}}});
  rows.push_back(
      {"aten::_chunk_cat", {list({b, b}), 0, 2}, {{0, list({floats({})})}, {1, 2}, {1, -3}, {2, 0}, {2, kHuge}}});
  rows.push_back({"aten::linalg_eigvals", {square, at::zeros({3}, at::kComplexFloat)}, {{0, square.div(0.0)}}, "out"});
  rows.push_back({"aten::_linalg_eigvals", {square}, {{0, square.div(0.0)}}});
  rows.push_back({"aten::lu_unpack",
                  {square, pivots, true, true},
                  {{1, wild}, {1, longs({1}).to(at::kInt)}, {0, floats({2, 3, 3})}}});
  rows.push_back({"aten::_foreach_copy", {list({b, b}), list({b, b}), false}, {{0, list({})}}});
  rows.push_back({"aten::_foreach_copy_", {list({b, b}), list({b, b}), false}, {{1, list({b})}}});
  return rows;
}

std::vector<Row> optimizer_rows() {
  const Tensor w = floats({3, 3});
  const auto one = [&] { return list({w.clone()}); };
  const c10::IValue step = list({at::ones({})});
  const c10::IValue few = list({floats({1})});
  std::vector<Row> rows;
  for (const char* name : {"aten::_fused_adam_", "aten::_fused_adamw_", "aten::_fused_adam", "aten::_fused_adamw"}) {
    rows.push_back(
        {name,
         {one(), one(), one(), one(), list({}), step, 0.1, 0.9, 0.99, 0.0, 1e-8, false, false, none(), none()},
         {{1, few},
          {2, few},
          {3, list({})},
          {4, few},
          {5, list({})},
          {5, list({floats({0})})},
          {11, true},
          {13, floats({0})}}});
  }
  for (const char* name : {"aten::_fused_adagrad_", "aten::_fused_adagrad"}) {
    rows.push_back({name,
                    {one(), one(), one(), step, 0.1, 0.0, 0.0, 1e-8, false, none(), none()},
                    {{1, few}, {2, few}, {3, list({})}}});
  }
  for (const char* name : {"aten::_fused_sgd_", "aten::_fused_sgd"}) {
    rows.push_back({name,
                    {one(), one(), one(), 0.0, 0.9, 0.1, 0.0, false, false, false, none(), none()},
                    {{1, few}, {2, few}, {2, list({})}}});
  }
  return rows;
}

std::vector<Row> all_rows() {
  std::vector<Row> all;
  for (auto rows : {normalization_rows(), pooling_rows(), loss_rows(), embedding_rows(), attention_rows(),
                    geometry_rows(), number_rows(), optimizer_rows()}) {
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

TEST(HostileOperators, EveryGuardLetsHonestCallsThroughAndStopsHostileOnes) {
  test::guard_all_results();
  for (const Row& row : all_rows()) expect_guarded(row);
}

TEST(HostileOperators, EmptyBatchesNeverReachKernelsThatDivideByThem) {
  for (const int64_t channels : {0, 3}) {
    const Tensor x = floats({channels == 0 ? 2 : 0, channels, 4, 4});
    const Tensor c = at::ones({channels});
    for (const char* name : {"aten::native_batch_norm_backward", "aten::batch_norm_backward"}) {
      Values values{x, x, c, c, c, c, c, true, 1e-5, flags({true, true, true})};
      if (name == std::string("aten::batch_norm_backward")) values.emplace_back(at::zeros({0}, at::kByte));
      const Status answered = test::call(name, "", values);
      EXPECT_NE(answered.text().find("the batch is empty"), std::string_view::npos) << name << answered.to_string();
    }
  }
}

TEST(HostileOperators, EveryGuardIsOfAnOperatorAndTested) {
  std::set<std::string_view> tested;
  const auto rows = all_rows();
  for (const Row& row : rows) tested.insert(row.name);
  std::set<std::string> known;
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) known.insert(name.name);
  for (const auto table : {shape_guards(), index_guards(), number_guards()}) {
    for (const GuardEntry& entry : table) {
      EXPECT_TRUE(known.contains(std::string(entry.name))) << entry.name << " is no operator";
      EXPECT_TRUE(tested.contains(entry.name)) << entry.name << " has a guard and no test";
      EXPECT_EQ(guard_of(entry.name), entry.guard) << entry.name << " has two guards";
    }
  }
}

// Genie's own: they look at their operands themselves.
TEST(HostileOperators, LayersOfAnLstm) {
  const int64_t steps = 3, batch = 2, width = 4, hidden = 5;
  const Tensor x = floats({steps, batch, width});
  const Tensor w_ih = floats({4 * hidden, width});
  const Tensor w_hh = floats({4 * hidden, hidden});
  const Tensor b = floats({4 * hidden});
  const Tensor h = floats({batch, hidden});
  const Tensor y = floats({steps, batch, hidden});
  const Tensor few = floats({1});
  const Tensor doubles = h.to(at::kDouble);
  for (const bool training : {false, true}) {
    expect_guarded({"genie::lstm_layer",
                    {x, w_ih, w_hh, b, b, h, h, false, training},
                    {{0, few},
                     {0, floats({0, batch, width})},
                     {1, few},
                     {2, few},
                     {3, none()},
                     {4, few},
                     {5, few},
                     {6, few},
                     {6, doubles},
                     {1, at::Tensor()}}});
  }
  expect_guarded({"genie::lstm_layer", {x, w_ih, w_hh, none(), none(), h, h, true, false}, {{5, few}, {3, b}}});
  // What a layer of these sizes needs; a client learns it from the forward pass.
  const auto forward = c10::Dispatcher::singleton().findSchemaOrThrow("genie::lstm_layer", "");
  torch::jit::Stack stack{x, w_ih, w_hh, b, b, h, h, false, true};
  forward.callBoxed(stack);
  const Tensor workspace = stack[3].toTensor();
  expect_guarded({"genie::lstm_layer_backward",
                  {x, w_ih, w_hh, b, b, h, h, y, h, h, y, h, h, false, workspace},
                  {{0, few},
                   {1, few},
                   {2, few},
                   {3, few},
                   {4, none()},
                   {5, few},
                   {6, few},
                   {7, few},
                   {8, few},
                   {9, few},
                   {10, few},
                   {11, few},
                   {12, doubles},
                   {14, at::zeros({1}, at::kByte)},
                   {14, few},
                   {14, at::zeros({workspace.numel() - 1}, at::kByte)}}});
  const Status answered = test::call("genie::lstm_layer_backward", "",
                                     {x, w_ih, w_hh, b, b, h, h, y, h, h, none(), none(), none(), false, workspace});
  EXPECT_EQ(answered.code(), Errc::kOpFailed) << answered.to_string();
}

TEST(HostileOperators, WhatReachesOutsideIsRefusedAtRegistration) {
  const Tensor x = floats({4});
  const auto refused = [](const char* name, const char* overload, const Values& arguments) {
    const Status answered = test::call(name, overload, arguments);
    EXPECT_EQ(answered.code(), Errc::kPermission) << name << ": " << answered.to_string();
    EXPECT_NE(answered.text().find(name), std::string_view::npos) << answered.to_string();
  };
  refused("aten::set_", "source_Tensor", {x, x});
  refused("aten::set_", "source_Tensor_storage_offset", {x, x, 1000, Ints{4}, Ints{1}});
  refused("aten::from_file", "", {"/etc/passwd", false, 16});
  refused("aten::_reshape_alias_copy", "", {x, Ints{4000}, Ints{1}});
  refused("aten::mkldnn_rnn_layer", "", {});
  refused("aten::_sparse_coo_tensor_unsafe", "", {at::zeros({1, 1}, at::kLong), x, Ints{4}});
  refused("aten::_nested_view_from_buffer_copy", "", {x, x, x, x});
  refused("aten::_convert_indices_from_coo_to_csr", "", {longs({kHuge}), 4, false});
  refused("aten::_cummax_helper", "", {x, x, longs({0}), 0});
  refused("aten::slow_conv_transpose2d", "", {});
  refused("aten::index_select_backward", "", {x, Ints{4}, 0, longs({0})});
  refused("inductor::_reinterpret_tensor", "", {x, Ints{4000}, Ints{1}, 0});
}

// Kernels that look for themselves; should a new libtorch stop doing so, this dies.
TEST(HostileOperators, KernelsThatCheckTheirIndicesStillDo) {
  test::guard_all_results();
  const Tensor x = floats({4, 5});
  const Tensor far = longs({0, kHuge});
  const auto fails = [](const char* name, const char* overload, const Values& arguments) {
    const Status answered = test::call(name, overload, arguments);
    EXPECT_EQ(answered.code(), Errc::kOpFailed) << name << ": " << answered.to_string();
  };
  const c10::IValue indices = list({far, longs({0, 1})});
  fails("aten::index", "Tensor", {x, indices});
  fails("aten::_unsafe_index", "Tensor", {x, indices});
  fails("aten::_index_put_impl_", "", {x, indices, floats({2}), false, true});
  fails("aten::_index_put_impl_", "", {x, indices, floats({2}), true, true});
  fails("aten::index_select", "", {x, 0, far});
  fails("aten::index_add", "", {x, 0, far, floats({2, 5}), 1});
  fails("aten::index_copy", "", {x, 0, far, floats({2, 5})});
  fails("aten::gather", "", {x, 1, far.view({1, 2}), false});
  fails("aten::scatter", "src", {x, 1, far.view({1, 2}), floats({1, 2})});
  fails("aten::scatter_add", "", {x, 1, far.view({1, 2}), floats({1, 2})});
  fails("aten::take", "", {x, far});
  fails("aten::put", "", {x, far, floats({2}), false});
  fails("aten::embedding", "", {x, far, -1, false, false});
  fails("aten::as_strided_copy", "", {x, Ints{400}, Ints{1}, 0});
  fails("aten::as_strided_scatter", "", {x, floats({400}), Ints{400}, Ints{1}, 0});
  fails("aten::max_unpool2d", "", {floats({1, 1, 2}), longs({0, kHuge}).view({1, 1, 2}), Ints{2, 2}});
  fails("aten::nll_loss_forward", "", {x, longs({0, 1, 2, 99}), none(), 1, -100});
}

}  // namespace
}  // namespace genie::executor
