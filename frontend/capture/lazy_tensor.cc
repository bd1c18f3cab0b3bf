#include "frontend/capture/lazy_tensor.h"

#include <ATen/EmptyTensor.h>

#include "frontend/device/allocator.h"

namespace genie::frontend {
namespace {

const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

// What libtorch keeps protected for those who derive from it: the fields that sizes and strides decide.
class MetadataAccess final : public c10::TensorImpl {
 public:
  static void copy(const c10::TensorImpl& from, c10::TensorImpl& to) { copy_generic_tensor_metadata(&from, &to); }
};

c10::Storage lazy_storage(StorageState* state, c10::Device device) {
  c10::Storage storage(c10::Storage::use_byte_size_t(), static_cast<int64_t>(state->size_bytes),
                       lazy_data_ptr(state, device), remote_allocator(), /*resizable=*/true);
  storage.unsafeGetStorageImpl()->set_materializer(refuse_data_access);
  return storage;
}

}  // namespace

void refuse_layout() {
  TORCH_CHECK(false, "only strided tensors live on remote_accelerator; convert with .to_dense() first");
}

void rethrow_poison(StorageState& state) {
  state.session->failure_seen(*state.error);
  throw Error(*state.error);
}

at::Tensor tensor_over(c10::Storage storage, at::IntArrayRef sizes, at::IntArrayRef strides, c10::ScalarType dtype) {
  auto tensor =
      at::detail::make_tensor_base<c10::TensorImpl>(std::move(storage), kKeys, c10::scalarTypeToTypeMeta(dtype));
  auto* impl = tensor.unsafeGetTensorImpl();
  if (sizes.size() != 1 || sizes[0] != 0) impl->set_sizes_and_strides(sizes, strides);
  return at::Tensor(std::move(tensor));
}

at::Tensor make_lazy_over(StorageState* state, c10::Device device, at::IntArrayRef sizes, at::IntArrayRef strides,
                          c10::ScalarType dtype) {
  return tensor_over(lazy_storage(state, device), sizes, strides, dtype);
}

at::Tensor make_lazy_like(const TensorMeta& meta, StorageState* state, c10::Device device) {
  const caffe2::TypeMeta type = c10::scalarTypeToTypeMeta(meta.dtype);
  if (meta.prototype == nullptr) {
    meta.prototype = c10::make_intrusive<c10::TensorImpl>(kKeys, type, device);
    meta.prototype->set_sizes_and_strides(meta.sizes, meta.strides);
  }
  auto tensor = at::detail::make_tensor_base<c10::TensorImpl>(lazy_storage(state, device), kKeys, type);
  MetadataAccess::copy(*meta.prototype, *tensor.unsafeGetTensorImpl());
  return at::Tensor(std::move(tensor));
}

at::Tensor make_lazy(SessionCore& core, c10::Device device, at::IntArrayRef sizes, at::IntArrayRef strides,
                     c10::ScalarType dtype) {
  const uint64_t bytes = at::detail::computeStorageNbytes(sizes, strides, c10::elementSize(dtype));
  return make_lazy_over(core.new_storage(bytes), device, sizes, strides, dtype);
}

}  // namespace genie::frontend
