// Pinned memory: what tensor.pin_memory() and data loaders ask an accelerator for.
//
// Purpose: aligned host memory that is_pinned() recognises. A copy to the device with non_blocking=true may read it until the
//   program has synchronized (PyTorch's contract): a node in this process computes on the bytes themselves. Any other copy
//   snapshots it before it returns.
// Thread-safety: any thread.
#pragma once

#include <c10/core/Allocator.h>

namespace genie::frontend {

c10::Allocator* pinned_allocator();
// Whether `address` lies in memory of the pinned allocator.
bool is_pinned_address(const void* address);

}  // namespace genie::frontend
