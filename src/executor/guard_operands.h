// Reading and checking the operands of a call that is about to run. Internal to the guards.
//
// Thread-safety: a value on one thread. Ownership: refers to the stack.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include <cstdint>
#include <vector>

namespace genie::executor {

// Refuses the call unless `held`.
inline void want(bool held, const char* what) {
  TORCH_CHECK(held, "the operands do not fit each other: ", what, " (the node checks this before the operator runs)");
}

class Operands {
 public:
  explicit Operands(const torch::jit::Stack& stack) : stack_(stack) {}

  size_t count() const { return stack_.size(); }
  bool is_tensor(size_t i) const { return i < stack_.size() && stack_[i].isTensor(); }
  bool has(size_t i) const { return is_tensor(i) && stack_[i].toTensor().defined(); }
  const at::Tensor& tensor(size_t i) const {
    want(has(i), "a tensor is missing");
    return stack_[i].toTensor();
  }
  int64_t number(size_t i) const { return stack_[i].toInt(); }
  bool flag(size_t i) const { return stack_[i].toBool(); }
  bool none(size_t i) const { return i >= stack_.size() || stack_[i].isNone(); }
  bool is_numbers(size_t i) const { return i < stack_.size() && stack_[i].isIntList(); }
  std::vector<int64_t> numbers(size_t i) const { return stack_[i].toIntVector(); }
  std::vector<at::Tensor> tensors(size_t i) const { return stack_[i].toTensorVector(); }
  std::vector<bool> flags(size_t i) const { return stack_[i].toBoolList().vec(); }
  const c10::IValue& value(size_t i) const { return stack_[i]; }

 private:
  const torch::jit::Stack& stack_;
};

// Every element lies in [first, end). Costs a pass over the tensor.
void want_within(const at::Tensor& indices, int64_t first, int64_t end, const char* what);
inline void want_same_sizes(const at::Tensor& a, const at::Tensor& b, const char* what) {
  want(a.sizes() == b.sizes(), what);
}
// All sizes but the last `tail` are the same.
void want_same_leading(const at::Tensor& a, const at::Tensor& b, int64_t tail, const char* what);
// Undefined, or a vector of that many elements.
void want_vector(const Operands& call, size_t index, int64_t elements, const char* what);
// The product of the last `tail` sizes.
int64_t trailing_elements(const at::Tensor& tensor, int64_t tail);

}  // namespace genie::executor
