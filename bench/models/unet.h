// One level of a diffusion U-Net: down, through the middle, and up again beside the skip connection. Residual blocks that know the
// time step, transformers that look at a text.
#pragma once

#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include "bench/models/transformer.h"

namespace genie::models {

// The first level of Stable Diffusion 1.
struct UnetConfig {
  int64_t channels = 320;
  int64_t time_width = 1280;
  int64_t text_width = 768;
  int64_t heads = 8;
  int64_t groups = 32;
};

struct TimedResidualImpl : torch::nn::Module {
  TimedResidualImpl(const UnetConfig& config, int64_t in_channels);
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& time);
  torch::nn::GroupNorm norm1, norm2;
  torch::nn::Conv2d conv1, conv2, shortcut{nullptr};
  torch::nn::Linear time_projection;
};
TORCH_MODULE(TimedResidual);

// Self-attention over the pixels, cross-attention to the text, a gated perceptron.
struct SpatialTransformerImpl : torch::nn::Module {
  explicit SpatialTransformerImpl(const UnetConfig& config);
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& text);
  torch::nn::GroupNorm norm;
  torch::nn::Conv2d project_in, project_out;
  torch::nn::LayerNorm norm1, norm2, norm3;
  Attention self_attention, cross_attention;
  torch::nn::Linear up, down;
};
TORCH_MODULE(SpatialTransformer);

struct UnetImpl : torch::nn::Module {
  explicit UnetImpl(const UnetConfig& config = {});
  // x: [batch, channels, height, width]; step: [batch]; text: [batch, length, text_width] -> like x
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& step, const torch::Tensor& text);
  const int64_t channels;
  torch::nn::Linear time1, time2;
  TimedResidual down_residual, middle, up_residual;
  SpatialTransformer down_transformer, up_transformer;
  torch::nn::Conv2d downsample, upsample;
};
TORCH_MODULE(Unet);

}  // namespace genie::models
