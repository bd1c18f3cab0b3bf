// Layouts that do not live on the device: sparse, quantized and nested tensors, which come there by a factory that names the
// device, or stand beside a remote operand.
#include "frontend/capture/registration.h"

namespace genie::frontend {
namespace {

using c10::DispatchKey;

void refuse_layout(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.operator_name(),
                              ": only strided tensors live on remote_accelerator. Keep this one on the CPU, or make it "
                              "strided (to_dense(), dequantize()) before it moves");
}

struct Layout {
  DispatchKey here;
  DispatchKey on_cpu;
};
constexpr Layout kLayouts[] = {
    {DispatchKey::SparsePrivateUse1, DispatchKey::SparseCPU},
    {DispatchKey::SparseCsrPrivateUse1, DispatchKey::SparseCsrCPU},
    {DispatchKey::QuantizedPrivateUse1, DispatchKey::QuantizedCPU},
    {DispatchKey::NestedTensorPrivateUse1, DispatchKey::NestedTensorCPU},
};

}  // namespace

// For what takes such a layout on the CPU, and for factories. Of everything else PyTorch says itself, there as here, that it has no
// kernel: a fallback for each layout would take a third of the time of the whole registration.
void register_layouts() {
  for (const c10::OperatorHandle& op : defined_operators()) {
    const bool is_factory = op.hasKernelForDispatchKey(DispatchKey::BackendSelect);
    for (const Layout& layout : kLayouts) {
      if (op.hasComputedKernelForDispatchKey(layout.here)) continue;  // a composition, whose pieces come here
      if (!is_factory && !op.hasKernelForDispatchKey(layout.on_cpu)) continue;
      add_kernel(op.operator_name(), layout.here, c10::KernelFunction::makeFromBoxedFunction<&refuse_layout>());
    }
  }
}

}  // namespace genie::frontend
