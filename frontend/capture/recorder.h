// Recorder: appends one operator call to the calling thread's stream and makes its lazy results.
//
// Purpose: the one path by which every operator on the remote device is captured.
// Thread-safety: any thread; the stream's lock is held only while the record is appended.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include "frontend/capture/op_info.h"
#include "frontend/capture/session_core.h"

namespace genie::frontend {

// Replaces the operator's arguments on the stack by its results. Throws what the operator would throw for a request that it
// refuses, genie::Error for a poisoned operand or a lost session.
void record_call(OpInfo& op, torch::jit::Stack& stack);

// A tensor on the device over a new storage; nothing is recorded (its content is undefined until something writes it).
at::Tensor make_lazy(SessionCore& core, c10::Device device, at::IntArrayRef sizes, at::IntArrayRef strides,
                     c10::ScalarType dtype);
// Over an existing state; takes over one reference.
at::Tensor make_lazy_over(StorageState* state, c10::Device device, at::IntArrayRef sizes, at::IntArrayRef strides,
                          c10::ScalarType dtype);

// The state of a remote tensor; throws for a tensor that is not one, and rethrows the error of a poisoned one.
StorageState& usable_state(const at::Tensor& tensor);

}  // namespace genie::frontend
