// Pinned memory: host memory that a node inside this process can compute on as it is.
//
// Purpose: tensor.pin_memory() gives such memory; with non_blocking=true, copying it to an embedded node copies nothing (PyTorch's
//   contract for pinned memory: the program leaves the bytes alone until the copy is done). Over a network it is snapshotted like
//   any other memory.
// Thread-safety: any thread.
#pragma once

#include <c10/core/Allocator.h>

namespace genie::frontend {

c10::Allocator* pinned_allocator();
// Whether `address` lies in memory of the pinned allocator.
bool is_pinned_address(const void* address);

}  // namespace genie::frontend
