// Recorder: appends one operator call to the calling thread's stream and makes its lazy results.
//
// Purpose: the one path by which every operator on the remote device is captured.
// Thread-safety: any thread; the stream's lock is held only while the record is appended.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <c10/util/FunctionRef.h>

#include "frontend/capture/call.h"
#include "frontend/capture/lazy_tensor.h"
#include "frontend/capture/op_info.h"
#include "frontend/capture/session_core.h"
#include "frontend/capture/shapes.h"

namespace genie::frontend {

// Replaces the operator's arguments on the stack by its results. Throws what the operator would throw for a request that it
// refuses, genie::Error for a poisoned operand or a lost session.
void record_call(OpInfo& op, torch::jit::Stack& stack);

// Records an encoded call and leaves its new tensors in call.results, lists flattened, arguments that are returned left out.
// `boxed` gives the arguments as IValues; asked only where the shape of a result is not known yet, or an argument is resized.
// Returns what was inferred: null where the node had to say.
using BoxedArguments = c10::function_ref<c10::ArrayRef<c10::IValue>()>;
const OutputMeta* record(OpInfo& op, Call& call, BoxedArguments boxed);

}  // namespace genie::frontend
