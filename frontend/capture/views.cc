// The views that programs take most, made without the detour through as_strided.
//
// libtorch makes each of them by a further call of an operator that checks what follows from the tensor already. What is rare
// (a wrong argument, a storage that was cut off) goes that way still, for its answer or its error.
#include <ATen/WrapDimUtils.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/slice_native.h>
#include <ATen/ops/split_native.h>
#include <ATen/ops/transpose_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "frontend/capture/registration.h"

namespace genie::frontend {
namespace {

// Where a view lies in its tensor's storage. It begins as the tensor itself.
struct Geometry {
  explicit Geometry(const at::Tensor& of) : sizes(of.sizes()), strides(of.strides()), offset(of.storage_offset()) {}

  at::DimVector sizes;
  at::DimVector strides;
  int64_t offset;

  // As long as it has elements.
  bool fits(const at::Tensor& of) const {
    int64_t last = offset;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] == 0) return true;
      last += (sizes[i] - 1) * strides[i];
    }
    const auto bytes = static_cast<uint64_t>(last + 1) * of.itemsize();
    return bytes <= of.unsafeGetTensorImpl()->unsafe_storage().nbytes();
  }
  at::Tensor view(const at::Tensor& of) const {
    auto made = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(of.storage()),
                                                         of.key_set(), of.dtype());
    made.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
    return made;
  }
};

// A tensor without dimensions has none.
bool is_dim(const at::Tensor& tensor, int64_t dim) { return dim >= -tensor.dim() && dim < tensor.dim(); }

size_t place_of(const at::Tensor& tensor, int64_t dim) {
  return static_cast<size_t>(dim < 0 ? dim + tensor.dim() : dim);
}

at::Tensor transpose(const at::Tensor& self, int64_t dim0, int64_t dim1) {
  if (!is_dim(self, dim0) || !is_dim(self, dim1)) return at::native::transpose(self, dim0, dim1);
  const size_t first = place_of(self, dim0);
  const size_t second = place_of(self, dim1);
  Geometry geometry(self);
  std::swap(geometry.sizes[first], geometry.sizes[second]);
  std::swap(geometry.strides[first], geometry.strides[second]);
  if (first == second || !geometry.fits(self)) return at::native::transpose(self, dim0, dim1);
  return geometry.view(self);
}

at::Tensor slice(const at::Tensor& self, int64_t dim, std::optional<int64_t> start, std::optional<int64_t> end,
                 int64_t step) {
  if (!is_dim(self, dim) || step <= 0 || step > INT32_MAX) {
    return at::native::slice(self, dim, start, end, step);
  }
  const size_t at = place_of(self, dim);
  Geometry geometry(self);
  const int64_t size = geometry.sizes[at];
  const auto place = [size](int64_t asked) { return std::clamp<int64_t>(asked < 0 ? asked + size : asked, 0, size); };
  const int64_t from = place(start.value_or(0));
  const int64_t to = std::max(from, place(end.value_or(size)));
  geometry.offset += from * geometry.strides[at];
  geometry.sizes[at] = (to - from + step - 1) / step;
  geometry.strides[at] *= step;
  if (!geometry.fits(self)) return at::native::slice(self, dim, start, end, step);
  return geometry.view(self);
}

std::vector<at::Tensor> split(const at::Tensor& self, int64_t split_size, int64_t dim) {
  if (!is_dim(self, dim) || split_size <= 0) return at::native::split(self, split_size, dim);
  Geometry geometry(self);
  if (!geometry.fits(self)) return at::native::split(self, split_size, dim);
  const size_t at = place_of(self, dim);
  const int64_t size = geometry.sizes[at];
  const int64_t begin = geometry.offset;
  std::vector<at::Tensor> parts;
  parts.reserve(static_cast<size_t>(size == 0 ? 1 : (size - 1) / split_size + 1));
  int64_t from = 0;
  do {
    geometry.offset = begin + from * geometry.strides[at];
    geometry.sizes[at] = std::min(split_size, size - from);
    parts.push_back(geometry.view(self));
    from += geometry.sizes[at];
  } while (from < size);
  return parts;
}

// Laid out so that libtorch's rule gives a view of it a contiguous tensor's strides.
bool is_packed(const at::Tensor& tensor) {
  const at::IntArrayRef sizes = tensor.sizes();
  const at::IntArrayRef strides = tensor.strides();
  int64_t expected = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    const bool last = i + 1 == sizes.size();
    if (strides[i] != expected && (sizes[i] != 1 || last)) return false;
    expected *= sizes[i];
  }
  return expected != 0;
}

at::Tensor view(const at::Tensor& self, at::IntArrayRef shape) {
  int64_t count = 1;
  for (const int64_t size : shape) {
    // One that is to be worked out, and what is wrong, like sizes that overflow.
    if (size <= 0 || __builtin_mul_overflow(count, size, &count)) return at::native::view(self, shape);
  }
  if (count != self.numel() || !is_packed(self)) return at::native::view(self, shape);
  Geometry geometry(self);
  geometry.sizes.assign(shape.begin(), shape.end());
  geometry.strides.resize(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0; stride *= shape[i]) geometry.strides[i] = stride;
  return geometry.view(self);
}

}  // namespace

void register_views() {
  torch::Library& library = aten_library(c10::DispatchKey::PrivateUse1);
  library.impl("view", TORCH_FN(view));
  library.impl("slice.Tensor", TORCH_FN(slice));
  library.impl("split.Tensor", TORCH_FN(split));
  library.impl("transpose.int", TORCH_FN(transpose));
}

}  // namespace genie::frontend
