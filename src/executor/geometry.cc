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

std::string describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "undefined";
  std::ostringstream text;
  text << tensor.scalar_type() << tensor.sizes();
  return text.str();
}

}  // namespace genie::executor
