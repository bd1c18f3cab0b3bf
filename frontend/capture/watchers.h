// Who else wants to see an operator's pieces.
//
// Purpose: some compositions are captured whole (linear, layer_norm). What stands between autograd and the device, or differentiates
//   forwards, knows their pieces only.
// Thread-safety: any thread.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <initializer_list>

namespace genie::frontend {

// A mode or a tensor of Python's, functionalization, or a transform (torch.func) stands between autograd and the device.
inline bool is_watched(std::initializer_list<const at::Tensor*> operands) {
  using enum c10::DispatchKey;
  constexpr c10::DispatchKeySet kWatchers({Python, Fake, Functionalize, FuncTorchGradWrapper, FuncTorchBatched,
                                           FuncTorchDynamicLayerBackMode, FuncTorchDynamicLayerFrontMode, ZeroTensor});
  c10::DispatchKeySet keys = c10::impl::tls_local_dispatch_key_set().included_;
  for (const at::Tensor* operand : operands) keys = keys | operand->key_set();
  return keys.has_any(kWatchers);
}

inline bool has_forward_grad(std::initializer_list<const at::Tensor*> operands) {
  for (const at::Tensor* operand : operands) {
    if (operand->defined() && operand->_fw_grad(0).defined()) return true;
  }
  return false;
}

inline bool wants_gradient(std::initializer_list<const at::Tensor*> operands) {
  if (!at::GradMode::is_enabled()) return false;
  for (const at::Tensor* operand : operands) {
    if (operand->defined() && operand->requires_grad()) return true;
  }
  return false;
}

}  // namespace genie::frontend
