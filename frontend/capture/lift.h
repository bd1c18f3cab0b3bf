// Lift: CPU tensors as operands of captured operators.
//
// Purpose: a storage's bytes travel once per version; its tensors are geometry over the remote copy. Gradients come back to the
//   CPU through one autograd node per tensor, however often it is used.
// What a copy is valid for: the same storage object (held weakly, so that its address cannot be used again while the copy is
//   known), the same memory, size and version, and nobody has opened the storage for writing since: its materializer tells, which
//   libtorch calls before it hands out a pointer to write through. That also finds writes by .data, numpy and data_ptr().
// Thread-safety: any thread.
// Ownership: the copies are the cache's, as long as their source lives: dead ones go with later lifts, captures and stats(). Those
//   of tensors that need no gradient and were sent once make room for each other beyond a bound.
#pragma once

#include <ATen/core/Tensor.h>

namespace genie::frontend {

// Whether a tensor is a plain strided one on the CPU: no wrapper, no subclass, no other layout.
bool can_lift(const at::Tensor& tensor);

// A tensor on `device` with the CPU tensor's value of now; differentiable. Shared: nobody may write to it.
at::Tensor lift(const at::Tensor& tensor, c10::Device device);

// Forgets copies of storages that are gone.
void forget_dead_copies();
size_t lifted_storage_count();

}  // namespace genie::frontend
