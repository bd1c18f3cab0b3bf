// GPU memory as other devices see it.
//
// Purpose: a dma-buf of a range of GPU memory, for a network device to register. The GPU's driver is loaded at run time
//   when there is one: neither its headers nor its library are needed to build.
// Thread-safety: any thread. Ownership: the caller owns the descriptor; the device that registered it keeps the memory
//   pinned by itself.
#pragma once

#include <cstddef>
#include <span>

#include "datapath/base/file_descriptor.h"
#include "genie/status.h"

namespace genie::datapath {

struct DmaBuf {
  FileDescriptor fd;
  size_t offset = 0;  // of the range within the dma-buf, which begins at a page
};

// kUnsupported where driver, kernel or GPU cannot (it takes CUDA 11.7, Linux 5.12 and the open kernel modules).
Result<DmaBuf> export_dma_buf(std::span<const std::byte> gpu_memory);

}  // namespace genie::datapath
