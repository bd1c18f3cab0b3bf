// Bytes in and out: snapshots of CPU tensors going up, values coming down.
//
// Copies: going up, one pass writes the snapshot into network-ready memory (also converting dtype and layout). Coming down, the
//   node writes the bytes once; the tensor that the program gets lives in that memory and is private to it.
// Thread-safety: any thread.
#pragma once

#include <ATen/core/Tensor.h>

#include "frontend/capture/session_core.h"

namespace genie::frontend {

// A snapshot of `source` (CPU) as a new tensor on the device.
at::Tensor upload_copy(SessionCore& core, c10::Device device, const at::Tensor& source);

// The value of a remote tensor as a private CPU tensor; flushes and waits.
at::Tensor fetch(const at::Tensor& remote, FlushReason reason = FlushReason::kValue);

// Before the first write to a fetched tensor's storage: the node may hold the same bytes. Its materializer.
void claim_fetched(c10::StorageImpl* storage);
// Whether a CPU storage still lies where fetch() put it.
bool is_fetched(const c10::StorageImpl& storage);

// aten::copy_ where one side or both are remote.
at::Tensor& copy_into(at::Tensor& self, const at::Tensor& source, bool non_blocking);

}  // namespace genie::frontend
