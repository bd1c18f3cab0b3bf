// Lazy tensors: tensors on the remote device, made without running anything.
//
// Purpose: a TensorImpl with a real StorageImpl (no data, the right number of bytes, our allocator) over a storage state.
// Thread-safety: all functions may be called from any thread.
#pragma once

#include <ATen/core/Tensor.h>

#include "frontend/capture/session_core.h"
#include "frontend/capture/shapes.h"

namespace genie::frontend {

// A tensor on the device over a new storage; nothing is recorded (its content is undefined until something writes it).
at::Tensor make_lazy(SessionCore& core, c10::Device device, at::IntArrayRef sizes, at::IntArrayRef strides,
                     c10::ScalarType dtype);
// Over an existing state; takes over one reference.
at::Tensor make_lazy_over(StorageState* state, c10::Device device, at::IntArrayRef sizes, at::IntArrayRef strides,
                          c10::ScalarType dtype);
// The same for a result whose shape was inferred: sizes, strides and what libtorch derives of them are copied from the prototype
// that `meta` keeps, which the first call makes. One device per `meta`.
at::Tensor make_lazy_like(const TensorMeta& meta, StorageState* state, c10::Device device);
// Over a storage that another tensor was made over before.
at::Tensor tensor_over(c10::Storage storage, at::IntArrayRef sizes, at::IntArrayRef strides, c10::ScalarType dtype);

// The state of a remote tensor; throws for a tensor that is not one, and rethrows the error of a poisoned one.
[[noreturn]] void refuse_layout();
[[noreturn]] void rethrow_poison(StorageState& state);
inline StorageState& usable_state(const at::Tensor& tensor) {
  const c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
  if (impl->layout() != c10::kStrided || !impl->has_storage()) [[unlikely]]
    refuse_layout();
  StorageState* state = StorageState::of(impl->unsafe_storage().unsafeGetStorageImpl());
  if (state->poisoned.load(std::memory_order_acquire)) [[unlikely]]
    rethrow_poison(*state);
  return *state;
}

}  // namespace genie::frontend
