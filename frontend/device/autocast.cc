// autocast for the device type: PyTorch's own policies, the lists that every accelerator shares.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include <string>
#include <string_view>

#include "frontend/capture/registration.h"

// The macros spell PyTorch's types without their namespace.
namespace at {
namespace {

// NOLINTNEXTLINE: PyTorch's macros name their own variables.
#define GENIE_LOWER_PRECISION(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define GENIE_FP32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define GENIE_FP32_SET_OPT_DTYPE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define GENIE_PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)

// As on every accelerator: its gradient does not fit into the lower precision.
Tensor refuse_binary_cross_entropy(const Tensor&, const Tensor&, const std::optional<Tensor>&, int64_t) {
  TORCH_CHECK(false,
              "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast: use "
              "binary_cross_entropy_with_logits (BCEWithLogitsLoss), which takes what comes before the sigmoid");
}

// What PyTorch's macros know as the library `m`.
struct AutocastKernels {
  template <class Function>
  void impl(const char* full, Function* kernel) {
    const std::string_view name = full;
    const size_t dot = name.find('.');
    const std::string_view overload = dot == std::string_view::npos ? std::string_view() : name.substr(dot + 1);
    genie::frontend::add_kernel(
        {std::string(name.substr(0, dot)), std::string(overload)}, c10::DispatchKey::AutocastPrivateUse1,
        c10::KernelFunction::makeFromUnboxedRuntimeFunction(kernel), c10::impl::CppSignature::make<Function>());
  }
};

void register_policies(AutocastKernels m) {
  AT_FORALL_LOWER_PRECISION_FP(GENIE_LOWER_PRECISION)
  AT_FORALL_FP32(GENIE_FP32)
  AT_FORALL_FP32_SET_OPT_DTYPE(GENIE_FP32_SET_OPT_DTYPE)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)
  AT_FORALL_PROMOTE(GENIE_PROMOTE)
  m.impl("aten::binary_cross_entropy", &refuse_binary_cross_entropy);
}

}  // namespace
}  // namespace at

namespace genie::frontend {

void register_autocast() {
  add_fallback(c10::DispatchKey::AutocastPrivateUse1, c10::KernelFunction::makeFallthrough());
  at::register_policies({});
}

}  // namespace genie::frontend
