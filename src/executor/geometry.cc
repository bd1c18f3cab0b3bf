#include "src/executor/geometry.h"

#include <algorithm>
#include <sstream>

namespace genie::executor {

uint64_t bytes_spanned(at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset, size_t item_bytes) {
  if (offset < 0) throw ReplayError(Errc::kProtocol, "negative storage offset");
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] < 0 || strides[i] < 0) throw ReplayError(Errc::kProtocol, "negative size or stride");
  }
  uint64_t last = static_cast<uint64_t>(offset);
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return 0;
    uint64_t step = 0;
    if (__builtin_mul_overflow(static_cast<uint64_t>(sizes[i] - 1), static_cast<uint64_t>(strides[i]), &step) ||
        __builtin_add_overflow(last, step, &last)) {
      throw ReplayError(Errc::kProtocol, "geometry overflows");
    }
  }
  uint64_t total = 0;
  if (__builtin_add_overflow(last, uint64_t{1}, &last) || __builtin_mul_overflow(last, item_bytes, &total)) {
    throw ReplayError(Errc::kProtocol, "geometry overflows");
  }
  return total;
}

Geometry::Geometry(const Node& node, std::span<const int64_t> params) {
  const int64_t* at = params.data() + node.param;
  sizes.append(at, at + node.rank);
  at += node.rank;
  if (node.contiguous) {
    strides.resize(node.rank);
    int64_t stride = 1;
    for (size_t i = node.rank; i-- > 0;) {
      strides[i] = stride;
      if (__builtin_mul_overflow(stride, std::max<int64_t>(sizes[i], 1), &stride)) {
        throw ReplayError(Errc::kProtocol, "geometry overflows");
      }
    }
  } else {
    strides.append(at, at + node.rank);
    at += node.rank;
  }
  if (!node.zero_offset) offset = *at;
}

bool lies_over(const at::Tensor& tensor, const c10::Storage& storage) noexcept {
  return tensor.defined() &&
         tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl() == storage.unsafeGetStorageImpl();
}

bool is_operand(const at::Tensor& tensor, const c10::Storage& storage, const Node& node,
                std::span<const int64_t> params) noexcept {
  if (node.conj || node.neg || !lies_over(tensor, storage)) return false;
  // What a plain tensor has that is made here, below autograd: no mark of any kind.
  static const c10::DispatchKeySet plain = [] {
    const c10::InferenceMode below_autograd;
    return c10::make_intrusive<c10::TensorImpl>(c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                caffe2::TypeMeta::Make<float>(), c10::Device(c10::DeviceType::CPU))
        ->key_set();
  }();
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  const at::IntArrayRef sizes = impl.sizes();
  if (sizes.size() != node.rank || impl.key_set() != plain || impl.is_wrapped_number() ||
      c10::typeMetaToScalarType(impl.dtype()) != static_cast<c10::ScalarType>(node.dtype)) {
    return false;
  }
  const at::IntArrayRef strides = impl.strides();
  const int64_t* at = params.data() + node.param;
  int64_t other = 0;
  for (size_t i = 0; i < node.rank; ++i) other |= at[i] ^ sizes[i];
  at += node.rank;
  if (node.contiguous) {
    int64_t expected = 1;
    for (size_t i = node.rank; i-- > 0; expected *= std::max<int64_t>(sizes[i], 1)) other |= strides[i] ^ expected;
  } else {
    for (size_t i = 0; i < node.rank; ++i) other |= at[i] ^ strides[i];
    at += node.rank;
  }
  other |= impl.storage_offset() ^ (node.zero_offset ? 0 : *at);
  // Within its storage, which a kernel may have made smaller.
  return other == 0 && impl.is_non_overlapping_and_dense() &&
         static_cast<uint64_t>(impl.storage_offset() + impl.numel()) * impl.itemsize() <= storage.nbytes();
}

std::string describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "undefined";
  std::ostringstream text;
  text << tensor.scalar_type() << tensor.sizes();
  return text.str();
}

}  // namespace genie::executor
