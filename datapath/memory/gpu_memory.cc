#include "datapath/memory/gpu_memory.h"

#include <dlfcn.h>

#include <cstdint>

#include "datapath/memory/pages.h"

namespace genie::datapath {
namespace {

// cuMemGetHandleForAddressRange(): handle, address, size, kind of handle, flags; answers 0 on success.
using GetHandle = int (*)(void*, unsigned long long, size_t, int, unsigned long long);
constexpr int kDmaBufDescriptor = 1;

GetHandle find_driver() noexcept {
  // The driver stays loaded: the process uses it anyway when it has GPU memory.
  void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return nullptr;
  return reinterpret_cast<GetHandle>(::dlsym(library, "cuMemGetHandleForAddressRange"));
}

}  // namespace

Result<DmaBuf> export_dma_buf(std::span<const std::byte> gpu_memory) {
  static const GetHandle get_handle = find_driver();
  if (get_handle == nullptr) return Status(Errc::kUnsupported, "no CUDA driver that exports memory (11.7 or newer)");
  const auto address = reinterpret_cast<uintptr_t>(gpu_memory.data());
  // The driver takes whole pages of the host.
  const uintptr_t begin = address & ~(page_bytes() - 1);
  const uintptr_t end = round_up(address + gpu_memory.size(), page_bytes());
  int fd = -1;
  const int failed = get_handle(&fd, begin, end - begin, kDmaBufDescriptor, 0);
  if (failed != 0) {
    return Status(Errc::kUnsupported, "the CUDA driver exports no dma-buf (error " + std::to_string(failed) +
                                          "): it takes the open kernel modules");
  }
  return DmaBuf{FileDescriptor(fd), address - begin};
}

}  // namespace genie::datapath
