// ReceivePool: private memory for messages that were copied out of what their sender may still write.
//
// Purpose: a message becomes a Buffer without malloc once the pool is warm.
// Thread-safety: allocate() belongs to one thread; a Buffer may be dropped on any thread, without a lock: drops push onto
//   a list that allocate() takes as a whole (so there is no ABA).
// Ownership: Buffers keep the pool's core alive and may outlive the pool.
#pragma once

#include <cstddef>

#include "datapath/memory/buffer.h"

namespace genie::datapath {

class ReceivePool {
 public:
  ReceivePool();
  ~ReceivePool();
  ReceivePool(const ReceivePool&) = delete;
  ReceivePool& operator=(const ReceivePool&) = delete;

  // 64-byte aligned, not cleared; size 0 gives a Buffer of size 0 that is not null.
  Buffer allocate(size_t size);

 private:
  struct Core;
  struct Block;
  Core* core_;
};

}  // namespace genie::datapath
