// GPU memory as other devices and the CPU see it.
//
// Purpose: a dma-buf of a range of GPU memory, for a network device to register; copies to and from the host where none can. The
//   GPU's driver is loaded at run time when there is one: neither its headers nor its library are needed to build.
// Thread-safety: any thread; one GpuCopier is one thread's at a time. Ownership: the caller owns the descriptor; the device that
//   registered it keeps the memory pinned by itself. A copier keeps the GPU's context alive, not the memory.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "datapath/base/file_descriptor.h"
#include "genie/status.h"

namespace genie::datapath {

struct DmaBuf {
  FileDescriptor fd;
  size_t offset = 0;  // of the range within the dma-buf, which begins at a page
};

// kUnsupported where driver, kernel or GPU cannot (it takes CUDA 11.7, Linux 5.12 and the open kernel modules).
Result<DmaBuf> export_dma_buf(std::span<const std::byte> gpu_memory);

// Copies between host memory and the memory of one GPU, on a stream of its own: it waits for no work of the program's.
class GpuCopier {
 public:
  // For the GPU that `gpu_memory` is on. kUnsupported where there is no driver or the memory is not a GPU's.
  static Result<GpuCopier> make(const std::byte* gpu_memory);

  GpuCopier(GpuCopier&& other) noexcept
      : device_(other.device_), context_(std::exchange(other.context_, nullptr)), stream_(other.stream_) {}
  GpuCopier(const GpuCopier&) = delete;
  GpuCopier& operator=(const GpuCopier&) = delete;
  ~GpuCopier();

  // Either way; returns when all is there. kIo with the driver's number where it fails.
  Status copy(std::byte* to, const std::byte* from, size_t size) const;

 private:
  GpuCopier(int device, void* context) noexcept : device_(device), context_(context) {}
  int open_stream() noexcept;

  int device_;
  void* context_;  // the GPU's primary one; null: moved away
  void* stream_ = nullptr;
};

}  // namespace genie::datapath
