#include "bench/models/unet.h"

#include <cmath>

namespace genie::models {
namespace {

torch::nn::Conv2d conv(int64_t in_channels, int64_t out_channels, int64_t kernel, int64_t stride = 1) {
  return torch::nn::Conv2d(
      torch::nn::Conv2dOptions(in_channels, out_channels, kernel).stride(stride).padding(kernel / 2));
}

torch::nn::GroupNorm group_norm(const UnetConfig& config, int64_t channels) {
  return torch::nn::GroupNorm(torch::nn::GroupNormOptions(config.groups, channels));
}

// Cosines and sines of the step at falling frequencies: [batch] -> [batch, width].
torch::Tensor embed_step(const torch::Tensor& step, int64_t width) {
  const auto half = torch::arange(width / 2, step.options().dtype(torch::kFloat));
  const auto angles =
      step.to(torch::kFloat).unsqueeze(1) * torch::exp(half * (-std::log(10000.0) * 2 / static_cast<double>(width)));
  return torch::cat({torch::cos(angles), torch::sin(angles)}, 1);
}

}  // namespace

TimedResidualImpl::TimedResidualImpl(const UnetConfig& config, int64_t in_channels)
    : norm1(register_module("norm1", group_norm(config, in_channels))),
      norm2(register_module("norm2", group_norm(config, config.channels))),
      conv1(register_module("conv1", conv(in_channels, config.channels, 3))),
      conv2(register_module("conv2", conv(config.channels, config.channels, 3))),
      time_projection(register_module("time_projection", torch::nn::Linear(config.time_width, config.channels))) {
  if (in_channels != config.channels) {
    shortcut = register_module("shortcut", conv(in_channels, config.channels, 1));
  }
}

torch::Tensor TimedResidualImpl::forward(const torch::Tensor& x, const torch::Tensor& time) {
  auto y = conv1(torch::silu(norm1(x)));
  y = y + time_projection(torch::silu(time)).unsqueeze(2).unsqueeze(3);
  y = conv2(torch::silu(norm2(y)));
  return (shortcut.is_empty() ? x : shortcut(x)) + y;
}

SpatialTransformerImpl::SpatialTransformerImpl(const UnetConfig& config)
    : norm(register_module("norm", group_norm(config, config.channels))),
      project_in(register_module("project_in", conv(config.channels, config.channels, 1))),
      project_out(register_module("project_out", conv(config.channels, config.channels, 1))),
      norm1(register_module("norm1", layer_norm(config.channels))),
      norm2(register_module("norm2", layer_norm(config.channels))),
      norm3(register_module("norm3", layer_norm(config.channels))),
      self_attention(register_module("self_attention", Attention(config.channels, config.heads))),
      cross_attention(register_module("cross_attention", Attention(config.channels, config.heads, config.text_width))),
      up(register_module("up", torch::nn::Linear(config.channels, 8 * config.channels))),
      down(register_module("down", torch::nn::Linear(4 * config.channels, config.channels))) {}

torch::Tensor SpatialTransformerImpl::forward(const torch::Tensor& x, const torch::Tensor& text) {
  auto y = project_in(norm(x)).flatten(2).transpose(1, 2);
  y = y + self_attention(norm1(y));
  y = y + cross_attention->attend(norm2(y), text, {});
  const auto halves = up(norm3(y)).chunk(2, -1);
  y = y + down(halves[0] * torch::gelu(halves[1]));
  return x + project_out(y.transpose(1, 2).reshape(x.sizes()));
}

UnetImpl::UnetImpl(const UnetConfig& config)
    : channels(config.channels),
      time1(register_module("time1", torch::nn::Linear(config.channels, config.time_width))),
      time2(register_module("time2", torch::nn::Linear(config.time_width, config.time_width))),
      down_residual(register_module("down_residual", TimedResidual(config, config.channels))),
      middle(register_module("middle", TimedResidual(config, config.channels))),
      up_residual(register_module("up_residual", TimedResidual(config, 2 * config.channels))),
      down_transformer(register_module("down_transformer", SpatialTransformer(config))),
      up_transformer(register_module("up_transformer", SpatialTransformer(config))),
      downsample(register_module("downsample", conv(config.channels, config.channels, 3, 2))),
      upsample(register_module("upsample", conv(config.channels, config.channels, 3))) {}

torch::Tensor UnetImpl::forward(const torch::Tensor& x, const torch::Tensor& step, const torch::Tensor& text) {
  const auto time = time2(torch::silu(time1(embed_step(step, channels))));
  const auto skip = down_transformer->forward(down_residual->forward(x, time), text);
  const auto low = middle->forward(downsample(skip), time);
  const auto high = upsample(torch::upsample_nearest2d(low, skip.sizes().slice(2)));
  return up_transformer->forward(up_residual->forward(torch::cat({high, skip}, 1), time), text);
}

}  // namespace genie::models
