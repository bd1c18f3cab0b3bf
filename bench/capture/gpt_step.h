// The operators of one decode step of GPT-2 small, with tiny tensors: what capture is measured with.
//
// Purpose: 12 layers, 12 heads, width 48: the operators and their order are those of the real model, and the arithmetic is so
//   small that time goes into getting operators issued. The KV cache grows by cat, so that shapes change with every step.
// Thread-safety: one thread. Ownership: plain tensors, on the device given.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace genie::bench {

class GptStep {
 public:
  // Made under the caller's mode guard. requires_grad: what a module's parameters say outside inference mode.
  GptStep(at::Device device, bool requires_grad);

  // Forgets what was decoded and begins with `length` positions in the cache.
  void reset(int64_t length);
  // One step: the logits of the next token.
  at::Tensor step();
  // Cuts the autograd graph that a growing cache would drag from step to step.
  void detach_cache();

 private:
  struct Block {
    at::Tensor norm1_weight, norm1_bias, norm2_weight, norm2_bias;
    at::Tensor qkv_weight, qkv_bias, out_weight, out_bias, up_weight, up_bias, down_weight, down_bias;
    at::Tensor keys, values;  // [1, heads, length, head width]
  };
  at::Tensor attention(Block& block, const at::Tensor& x);
  at::Tensor parameter(at::IntArrayRef shape) const;

  at::Device device_;
  bool requires_grad_;
  int64_t position_ = 0;
  at::Tensor token_, positions_, token_table_, position_table_, norm_weight_, norm_bias_;
  std::vector<Block> blocks_;
};

}  // namespace genie::bench
