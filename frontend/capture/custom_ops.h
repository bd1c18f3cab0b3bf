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

}  // namespace genie::frontend
