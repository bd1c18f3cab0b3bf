// Sharing: one storage's memory in several hands, without a copy until somebody writes.
//
// Purpose: a result that a client fetches is the storage's own memory wherever that is possible. Whoever wants to write
//   memory that others hold too copies it first; the last holder may write it in place.
// Why not c10::impl::cow: its context is freed by whoever drops the last reference while another thread, which has just
//   dropped the last but one in order to copy, has yet to take the context's lock. Within one thread that never shows; here
//   the node's worker and the program's threads hold the same bytes.
// Invariants: (1) only a holder makes further holders, so whoever sees that it is the only one stays so until it shares
//   again; (2) whoever copies holds the memory until the copy is finished; (3) memory is written in place by its only holder
//   alone. Hence no two threads ever touch the bytes at once unless both read.
// Thread-safety: a storage belongs to one thread at a time; holders may be dropped on any thread.
// Ownership: the memory goes with its last holder.
#pragma once

#include <c10/core/Storage.h>

#include <memory>

#include "src/executor/executor.h"

namespace genie::executor {

// A pointer to CPU memory that keeps its owner.
c10::DataPtr pointer_to(HostMemory memory);

// A further holder of the storage's memory. From now on is_shared() tells whether anybody else still has it.
std::shared_ptr<const void> share_memory(c10::Storage& storage);
bool is_shared(const c10::Storage& storage) noexcept;

}  // namespace genie::executor
