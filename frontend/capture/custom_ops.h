// Operators of other namespaces than aten: captured like PyTorch's, where the session's node has the library that defines them.
//
// Thread-safety: any thread.
#pragma once

#include "frontend/capture/op_info.h"

namespace genie::frontend {

class SessionCore;

// Throws c10::NotImplementedError, with what to do, when the session's node does not have the operator, or has another one of
// that name.
void accept_custom(OpInfo& op, const SessionCore& core);

// Moves on when an operator goes from this process: what was remembered by the address of its schema counts no longer.
uint32_t op_generation() noexcept;

}  // namespace genie::frontend
