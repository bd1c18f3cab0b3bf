#include "bench/capture/gpt_step.h"

#include <ATen/ops/add.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>

namespace genie::bench {
namespace {

constexpr int64_t kLayers = 12;
constexpr int64_t kHeads = 12;
constexpr int64_t kWidth = 48;
constexpr int64_t kHeadWidth = kWidth / kHeads;
constexpr int64_t kVocabulary = 64;
constexpr int64_t kContext = 1024;

}  // namespace

GptStep::GptStep(at::Device device, bool requires_grad)
    : device_(device),
      requires_grad_(requires_grad),
      token_(at::zeros({1, 1}, at::kLong).to(device)),
      positions_(at::arange(kContext, at::kLong).unsqueeze(0).to(device)),
      token_table_(parameter({kVocabulary, kWidth})),
      position_table_(parameter({kContext, kWidth})),
      norm_weight_(parameter({kWidth})),
      norm_bias_(parameter({kWidth})) {
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    Block block;
    for (at::Tensor* vector : {&block.norm1_weight, &block.norm1_bias, &block.norm2_weight, &block.norm2_bias,
                               &block.out_bias, &block.down_bias}) {
      *vector = parameter({kWidth});
    }
    block.qkv_weight = parameter({3 * kWidth, kWidth});
    block.qkv_bias = parameter({3 * kWidth});
    block.out_weight = parameter({kWidth, kWidth});
    block.up_weight = parameter({4 * kWidth, kWidth});
    block.up_bias = parameter({4 * kWidth});
    block.down_weight = parameter({kWidth, 4 * kWidth});
    blocks_.push_back(std::move(block));
  }
}

at::Tensor GptStep::parameter(at::IntArrayRef shape) const {
  const at::Tensor value = at::randn(shape).mul_(0.02).to(device_);
  return requires_grad_ ? value.detach().requires_grad_() : value;
}

void GptStep::reset(int64_t length) {
  position_ = length;
  const at::Tensor empty = at::zeros({1, kHeads, length, kHeadWidth});
  for (Block& block : blocks_) {
    block.keys = empty.to(device_);
    block.values = empty.to(device_);
  }
}

void GptStep::detach_cache() {
  for (Block& block : blocks_) {
    block.keys = block.keys.detach();
    block.values = block.values.detach();
  }
}

at::Tensor GptStep::attention(Block& block, const at::Tensor& x) {
  const auto qkv = at::linear(x, block.qkv_weight, block.qkv_bias).split(kWidth, -1);
  const auto heads = [](const at::Tensor& t) { return t.view({1, 1, kHeads, kHeadWidth}).transpose(1, 2); };
  block.keys = at::cat({block.keys, heads(qkv[1])}, 2);
  block.values = at::cat({block.values, heads(qkv[2])}, 2);
  const auto mixed = at::scaled_dot_product_attention(heads(qkv[0]), block.keys, block.values);
  return at::linear(mixed.transpose(1, 2).reshape({1, 1, kWidth}), block.out_weight, block.out_bias);
}

at::Tensor GptStep::step() {
  at::Tensor x =
      at::add(at::embedding(token_table_, token_), at::embedding(position_table_, positions_.narrow(1, position_, 1)));
  ++position_;
  for (Block& block : blocks_) {
    x = at::add(x, attention(block, at::layer_norm(x, {kWidth}, block.norm1_weight, block.norm1_bias)));
    const auto normed = at::layer_norm(x, {kWidth}, block.norm2_weight, block.norm2_bias);
    const auto up = at::gelu(at::linear(normed, block.up_weight, block.up_bias), "tanh");
    x = at::add(x, at::linear(up, block.down_weight, block.down_bias));
  }
  return at::linear(at::layer_norm(x, {kWidth}, norm_weight_, norm_bias_), token_table_);
}

}  // namespace genie::bench
