// layer_norm: one record with one result where no gradient is recorded.
//
// PyTorch reaches a device's layer_norm as native_layer_norm, which also makes the mean and the deviation that its backward wants.
// Without a backward they are storages that nobody reads: most of what capturing the operator costs.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/layer_norm_native.h>
#include <ATen/ops/layer_norm_ops.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "frontend/capture/registration.h"
#include "frontend/capture/typed_kernels.h"
#include "frontend/capture/watchers.h"

namespace genie::frontend {
namespace {

// What the pieces would refuse, or do in another dtype, is left to them.
bool is_plain(const at::Tensor& input, at::IntArrayRef normalized, const at::Tensor& weight, const at::Tensor& bias) {
  const auto fits = [&](const at::Tensor& factor) {
    return !factor.defined() || (factor.device() == input.device() && factor.scalar_type() == input.scalar_type() &&
                                 factor.sizes() == normalized);
  };
  const at::IntArrayRef sizes = input.sizes();
  return !normalized.empty() && normalized.size() <= sizes.size() &&
         std::equal(normalized.rbegin(), normalized.rend(), sizes.rbegin()) && input.numel() != 0 &&
         input.is_floating_point() && input.device().is_privateuseone() && fits(weight) && fits(bias);
}

at::Tensor layer_norm(const at::Tensor& input, c10::SymIntArrayRef normalized_shape,
                      const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps,
                      bool cudnn) {
  const at::Tensor scale = weight.value_or(at::Tensor());
  const at::Tensor offset = bias.value_or(at::Tensor());
  if (!is_plain(input, C10_AS_INTARRAYREF_SLOW(normalized_shape), scale, offset)) [[unlikely]]
    return at::native::layer_norm_symint(input, normalized_shape, weight, bias, eps, cudnn);
  return typed::Kernel<at::_ops::layer_norm>::call(input, normalized_shape, weight, bias, eps, cudnn);
}

at::Tensor layer_norm_with_autograd(const at::Tensor& input, c10::SymIntArrayRef normalized_shape,
                                    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
                                    double eps, bool cudnn) {
  const at::Tensor scale = weight.value_or(at::Tensor());
  const at::Tensor offset = bias.value_or(at::Tensor());
  const auto operands = {&input, &scale, &offset};
  if (wants_gradient(operands) || has_forward_grad(operands) || is_watched(operands)) {
    return at::native::layer_norm_symint(input, normalized_shape, weight, bias, eps, cudnn);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return layer_norm(input, normalized_shape, weight, bias, eps, cudnn);
}

}  // namespace

void register_layer_norm() {
  aten_library(c10::DispatchKey::AutogradPrivateUse1).impl("layer_norm", TORCH_FN(layer_norm_with_autograd));
  aten_library(c10::DispatchKey::PrivateUse1).impl("layer_norm", TORCH_FN(layer_norm));
}

}  // namespace genie::frontend
