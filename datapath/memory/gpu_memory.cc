#include "datapath/memory/gpu_memory.h"

#include <dlfcn.h>

#include <cstdint>
#include <string>

#include "datapath/memory/pages.h"

namespace genie::datapath {
namespace {

using Address = unsigned long long;  // a CUdeviceptr
constexpr int kDmaBufDescriptor = 1;
constexpr int kMemoryTypeAttribute = 2;
constexpr int kDeviceOrdinalAttribute = 9;
constexpr int kDeviceMemory = 2;
constexpr unsigned kNonBlockingStream = 1;

// What is used of CUDA's driver. Every call answers 0 on success.
struct Driver {
  int (*get_handle)(void* handle, Address address, size_t size, int kind, unsigned long long flags) = nullptr;
  int (*pointer_attribute)(void* value, int attribute, Address address) = nullptr;
  int (*retain_context)(void** context, int device) = nullptr;
  int (*release_context)(int device) = nullptr;
  int (*push_context)(void* context) = nullptr;
  int (*pop_context)(void** context) = nullptr;
  int (*create_stream)(void** stream, unsigned flags) = nullptr;
  int (*destroy_stream)(void* stream) = nullptr;
  int (*copy)(Address to, Address from, size_t size, void* stream) = nullptr;
  int (*synchronize)(void* stream) = nullptr;

  Driver() noexcept {
    // It stays loaded: a process that has GPU memory uses it anyway.
    void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    find(library, "cuMemGetHandleForAddressRange", get_handle);
    find(library, "cuPointerGetAttribute", pointer_attribute);
    find(library, "cuDevicePrimaryCtxRetain", retain_context);
    find(library, "cuDevicePrimaryCtxRelease_v2", release_context);
    find(library, "cuCtxPushCurrent_v2", push_context);
    find(library, "cuCtxPopCurrent_v2", pop_context);
    find(library, "cuStreamCreate", create_stream);
    find(library, "cuStreamDestroy_v2", destroy_stream);
    find(library, "cuMemcpyAsync", copy);
    find(library, "cuStreamSynchronize", synchronize);
  }
  bool copies() const noexcept {
    return pointer_attribute != nullptr && retain_context != nullptr && release_context != nullptr &&
           push_context != nullptr && pop_context != nullptr && create_stream != nullptr && destroy_stream != nullptr &&
           copy != nullptr && synchronize != nullptr;
  }

 private:
  template <typename Call>
  static void find(void* library, const char* name, Call& call) noexcept {
    call = reinterpret_cast<Call>(::dlsym(library, name));
  }
};

const Driver& driver() noexcept {
  static const Driver loaded;
  return loaded;
}

Address address_of(const std::byte* memory) noexcept { return reinterpret_cast<uintptr_t>(memory); }

// A thread may have no context, or another's.
class CurrentContext {
 public:
  explicit CurrentContext(void* context) noexcept : failed_(driver().push_context(context)) {}
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;
  ~CurrentContext() {
    void* popped = nullptr;
    if (failed_ == 0) driver().pop_context(&popped);
  }
  int failed() const noexcept { return failed_; }

 private:
  const int failed_;
};

Status driver_error(Errc code, const char* what, int number) {
  return {code, std::string(what) + " (CUDA's error " + std::to_string(number) + ")"};
}

}  // namespace

Result<DmaBuf> export_dma_buf(std::span<const std::byte> gpu_memory) {
  if (driver().get_handle == nullptr) {
    return Status(Errc::kUnsupported, "no CUDA driver that exports memory (11.7 or newer)");
  }
  const Address address = address_of(gpu_memory.data());
  // The driver takes whole pages of the host.
  const Address begin = address & ~(Address{page_bytes()} - 1);
  const Address end = round_up(address + gpu_memory.size(), page_bytes());
  int fd = -1;
  const int failed = driver().get_handle(&fd, begin, end - begin, kDmaBufDescriptor, 0);
  if (failed != 0) {
    return driver_error(Errc::kUnsupported,
                        "the CUDA driver exports no dma-buf, for which it takes the open kernel modules", failed);
  }
  return DmaBuf{FileDescriptor(fd), address - begin};
}

Result<GpuCopier> GpuCopier::make(const std::byte* gpu_memory) {
  const Driver& cuda = driver();
  if (!cuda.copies()) return Status(Errc::kUnsupported, "there is no CUDA driver");
  // Not the context of the memory: what an allocator maps by itself has none.
  unsigned type = 0;
  int device = -1;
  const Address address = address_of(gpu_memory);
  if (cuda.pointer_attribute(&type, kMemoryTypeAttribute, address) != 0 || type != kDeviceMemory ||
      cuda.pointer_attribute(&device, kDeviceOrdinalAttribute, address) != 0) {
    return Status(Errc::kUnsupported, "the CUDA driver knows no GPU memory at this address");
  }
  void* context = nullptr;
  if (const int failed = cuda.retain_context(&context, device); failed != 0) {
    return driver_error(Errc::kUnsupported, "the GPU gives no context", failed);
  }
  GpuCopier made(device, context);
  if (const int failed = made.open_stream(); failed != 0) {
    return driver_error(Errc::kUnsupported, "the GPU gives no stream", failed);
  }
  return made;
}

int GpuCopier::open_stream() noexcept {
  const CurrentContext current(context_);
  return current.failed() != 0 ? current.failed() : driver().create_stream(&stream_, kNonBlockingStream);
}

GpuCopier::~GpuCopier() {
  if (context_ == nullptr) return;
  if (stream_ != nullptr) {
    const CurrentContext current(context_);
    driver().destroy_stream(stream_);
  }
  driver().release_context(device_);
}

Status GpuCopier::copy(std::byte* to, const std::byte* from, size_t size) const {
  const CurrentContext current(context_);
  int failed = current.failed();
  if (failed == 0) failed = driver().copy(address_of(to), address_of(from), size, stream_);
  if (failed == 0) failed = driver().synchronize(stream_);
  if (failed == 0) return {};
  return driver_error(Errc::kIo, "a copy between GPU and host failed", failed);
}

}  // namespace genie::datapath
