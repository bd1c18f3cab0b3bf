// Guards: what stands between a client's operands and kernels that trust them.
//
// Purpose: most of libtorch's CPU kernels check sizes and indices before they touch memory. Some do not: they were written to
//   be called by autograd with what their own forward pass made. A client may send anything, so these are either refused
//   when a template is registered, or checked each time before they run.
// Thread-safety: any thread. The tables are constant.
#pragma once

#include <ATen/core/operator_name.h>
#include <ATen/core/stack.h>

#include <string_view>

#include "src/executor/executor.h"

namespace genie::executor {

// Why nodes do not run this operator at all; empty when they do.
std::string_view refusal(const c10::OperatorName& name, Trust trust = Trust::kLibraries);

// Throws c10::Error when the operands (the stack, before the call) would make the kernel leave them.
using Guard = void (*)(const torch::jit::Stack& operands);
// Null when the kernel checks for itself. All overloads of an operator share a guard: their operands begin alike.
Guard guard_of(std::string_view name);

}  // namespace genie::executor
