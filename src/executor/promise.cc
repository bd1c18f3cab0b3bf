#include "src/executor/promise.h"

#include <ATen/ExpandUtils.h>
#include <fmt/format.h>

#include <sstream>

namespace genie::executor {

std::string layout_text(c10::ScalarType dtype, at::IntArrayRef sizes, at::IntArrayRef strides) {
  std::ostringstream text;
  text << dtype << sizes << " with strides " << strides;
  return text.str();
}

std::string layout_text(const at::Tensor& tensor) {
  return layout_text(tensor.scalar_type(), tensor.sizes(), tensor.strides());
}

ReplayError broken_promise(const std::string& real, const std::string& promised) {
  return {
      Errc::kInternal,
      fmt::format("gives {} where {} was promised: its Meta kernel or its shape function is wrong (for an operator of "
                  "PyTorch: please report it)",
                  real, promised)};
}

bool keeps_promise(const Geometry& promised, c10::ScalarType dtype, const at::Tensor& real) {
  if (real.scalar_type() != dtype || real.sizes() != at::IntArrayRef(promised.sizes)) return false;
  if (real.numel() == 0) return true;
  const auto strides = real.is_non_overlapping_and_dense() ? real.strides().vec()
                                                           : at::infer_dense_strides(real.sizes(), real.strides());
  for (size_t i = 0; i < strides.size(); ++i) {
    if (promised.sizes[i] != 1 && strides[i] != promised.strides[i]) return false;
  }
  return true;
}

void check_promise(const Node& node, std::span<const int64_t> params, const at::Tensor& real) {
  const Geometry promised(node, params);
  const auto dtype = static_cast<c10::ScalarType>(node.dtype);
  const bool same = real.is_non_overlapping_and_dense()
                        ? keeps_promise(promised, dtype, real)
                        : real.scalar_type() == dtype && real.sizes() == at::IntArrayRef(promised.sizes);
  if (!same) throw broken_promise(layout_text(real), layout_text(dtype, promised.sizes, promised.strides));
}

void keep_form(const Node& node, std::span<const int64_t> params, const at::Tensor& tensor) {
  const Geometry promised(node, params);
  if (tensor.strides() == at::IntArrayRef(promised.strides) && tensor.is_conj() == node.conj &&
      tensor.is_neg() == node.neg) [[likely]] {
    return;
  }
  if (tensor.sizes() != at::IntArrayRef(promised.sizes) ||
      bytes_spanned(promised.sizes, promised.strides, tensor.storage_offset(), tensor.itemsize()) >
          tensor.storage().nbytes()) {
    throw broken_promise(layout_text(tensor), layout_text(tensor.scalar_type(), promised.sizes, promised.strides));
  }
  const at::Tensor values = tensor.clone();
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(promised.sizes, promised.strides, tensor.storage_offset());
  impl->_set_conj(node.conj);
  impl->_set_neg(node.neg);
  tensor.copy_(values);
}

}  // namespace genie::executor
