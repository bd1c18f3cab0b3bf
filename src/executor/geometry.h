// Geometry: sizes, strides and offset of an operand or a result, checked: the numbers come from a client.
//
// Thread-safety: values. Errors: ReplayError, which ends the record that it is raised in.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include "src/executor/program.h"

namespace genie::executor {

struct ReplayError : std::runtime_error {
  ReplayError(Errc code, const std::string& text) : std::runtime_error(text), code(code) {}
  Errc code;
};

// What a geometry needs of its storage, in bytes; refuses negative numbers and overflow.
uint64_t bytes_spanned(at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset, size_t item_bytes);

// Sizes and strides of a node, read from the parameters.
struct Geometry {
  c10::SmallVector<int64_t, 6> sizes;
  c10::SmallVector<int64_t, 6> strides;
  int64_t offset = 0;

  Geometry(const Node& node, std::span<const int64_t> params);
};

// Whether `tensor`, perhaps undefined, is one of that storage.
bool lies_over(const at::Tensor& tensor, const c10::Storage& storage) noexcept;
// Whether `tensor`, perhaps undefined, is the operand that `node` asks for of `storage`: most records read what another one made,
// as it made it, and need no tensor of their own. Kernels may have changed the tensor since.
bool is_operand(const at::Tensor& tensor, const c10::Storage& storage, const Node& node,
                std::span<const int64_t> params) noexcept;

// "Float[2, 3]", for error texts.
std::string describe(const at::Tensor& tensor);

}  // namespace genie::executor
