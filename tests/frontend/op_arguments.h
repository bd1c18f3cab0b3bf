// Arguments for operators, made from nothing but their schema.
//
// Thread-safety: one thread. Ownership: what is returned belongs to the caller.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/function_schema.h>
#include <ATen/core/stack.h>

#include <cstdint>
#include <optional>

namespace genie::test {

// Tensors with values from a seed. The form of what it makes never depends on the seed.
class Values {
 public:
  Values(uint64_t seed, at::ScalarType dtype);

  at::ScalarType dtype() const { return dtype_; }
  // Around zero, or in (0, 1): integers are in [-3, 4], or in [1, 4].
  at::Tensor real(at::IntArrayRef sizes, bool unit = false);
  at::Tensor index(at::IntArrayRef sizes, int64_t below);
  at::Tensor mask(at::IntArrayRef sizes);
  at::Tensor ascending(at::IntArrayRef sizes);
  // Symmetric and positive definite in its last two dimensions.
  at::Tensor positive_definite(at::IntArrayRef sizes);

 private:
  at::Generator generator_;
  at::ScalarType dtype_;
};

// How one set of arguments looks.
struct Plan {
  enum class Layout { kPlain, kTransposed, kGaps, kChannelsLast, kLazyBit, kPositiveDefinite };
  const char* name;
  c10::SmallVector<int64_t, 5> sizes;
  Layout layout = Layout::kPlain;
  bool unit = false;
  bool broadcast = false;  // operands after the first lack its first dimension
};
c10::ArrayRef<Plan> plans();

// None where some argument's type is not one of ours. With `fill`, optional arguments are given and flags are turned; without it
// everything is as the schema's defaults say. Devices are the CPU.
std::optional<torch::jit::Stack> make_arguments(const c10::FunctionSchema& schema, const Plan& plan, bool fill,
                                                Values& values);

// The same operands on `device`, sharing nothing with the given ones: sizes, strides, offsets and lazy bits stay.
torch::jit::Stack replica(const torch::jit::Stack& arguments, c10::Device device);

}  // namespace genie::test
