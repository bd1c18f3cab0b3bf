// One operator with one set of arguments, on the CPU and on another device: results, mutated operands, layouts and aliases.
//
// Thread-safety: one thread.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <cstdint>
#include <string>

namespace genie::test {

// From best to worst.
enum class Verdict : uint8_t {
  kRefused,  // by CPU eager: says nothing
  kEqual,    // to the bit
  kClose,    // within the tolerance of torch.testing
  kLayout,   // equal, but strides differ
  kDiffers,  // values, forms, aliases, or the device refuses
};

struct Finding {
  Verdict verdict = Verdict::kRefused;
  std::string text;
};

// `form_only`: the results are memory that nobody has written.
Finding compare_on(const c10::OperatorHandle& op, const torch::jit::Stack& arguments, c10::Device device,
                   bool form_only);

}  // namespace genie::test
