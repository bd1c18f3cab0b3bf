#include "tests/gpu_driver/gpu_driver.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <system_error>
#include <vector>

namespace genie::test {
namespace {

// CUDA's numbers.
constexpr int kSuccess = 0;
constexpr int kInvalidValue = 1;
constexpr int kInvalidContext = 201;
constexpr int kLaunchFailure = 719;
constexpr int kNotSupported = 801;

struct Block {
  size_t size = 0;
  int fd = -1;
  std::byte* bytes = nullptr;  // the same memory, where this file may touch it
};

std::mutex mutex;
std::map<uintptr_t, Block> blocks;  // by the address that the program sees
std::atomic<bool> exports{false};
std::atomic<int> failures{0};
constexpr int kDevice = 3;
int the_context = 0;
int the_stream = 0;
std::atomic<int> contexts_retained{0};
std::atomic<int> streams_open{0};
thread_local int contexts_pushed = 0;

struct Copy {
  uintptr_t to = 0;
  uintptr_t from = 0;
  size_t size = 0;
};
std::vector<Copy> pending;

// The block that holds the range, and where it begins; null for other memory.
const Block* find(uintptr_t address, size_t size, uintptr_t* begin) {
  auto after = blocks.upper_bound(address);
  if (after == blocks.begin()) return nullptr;
  --after;
  if (address + size > after->first + after->second.size) return nullptr;
  *begin = after->first;
  return &after->second;
}

std::byte* reach(uintptr_t address, size_t size) {
  uintptr_t begin = 0;
  const Block* const block = find(address, size, &begin);
  return block != nullptr ? block->bytes + (address - begin) : reinterpret_cast<std::byte*>(address);
}

void* must_map(size_t size, int protection, int flags, int fd) {
  void* const mapped = ::mmap(nullptr, size, protection, flags, fd, 0);
  if (mapped == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  return mapped;
}

}  // namespace

std::byte* allocate_gpu_memory(size_t size) {
  Block block{.size = size, .fd = ::memfd_create("gpu", MFD_CLOEXEC)};
  if (block.fd < 0 || ::ftruncate(block.fd, static_cast<off_t>(size)) != 0) {
    throw std::system_error(errno, std::generic_category(), "memfd");
  }
  block.bytes = static_cast<std::byte*>(must_map(size, PROT_READ | PROT_WRITE, MAP_SHARED, block.fd));
  auto* const seen = static_cast<std::byte*>(must_map(size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
  const std::lock_guard lock(mutex);
  blocks[reinterpret_cast<uintptr_t>(seen)] = block;
  return seen;
}

void free_gpu_memory(std::byte* memory) noexcept {
  const std::lock_guard lock(mutex);
  const auto found = blocks.find(reinterpret_cast<uintptr_t>(memory));
  if (found == blocks.end()) return;
  ::munmap(memory, found->second.size);
  ::munmap(found->second.bytes, found->second.size);
  ::close(found->second.fd);
  blocks.erase(found);
}

void export_gpu_memory(bool wanted) noexcept { exports = wanted; }
void fail_gpu_copies(int count) noexcept { failures = count; }
int gpu_handles_open() noexcept { return contexts_retained + streams_open; }

#pragma GCC visibility push(default)
extern "C" {

int cuMemGetHandleForAddressRange(void* handle, unsigned long long address, size_t size, int kind,
                                  unsigned long long flags) {
  if (!exports) return kNotSupported;
  const std::lock_guard lock(mutex);
  uintptr_t begin = 0;
  const Block* const block = find(address, size, &begin);
  if (block == nullptr || kind != 1 || flags != 0 || address % 4096 != 0 || size % 4096 != 0) return kInvalidValue;
  const int fd = ::dup(block->fd);
  std::memcpy(handle, &fd, sizeof(fd));
  return kSuccess;
}

int cuPointerGetAttribute(void* value, int attribute, unsigned long long address) {
  const std::lock_guard lock(mutex);
  uintptr_t begin = 0;
  if (find(address, 1, &begin) == nullptr) return kInvalidValue;
  int answer = 0;
  switch (attribute) {
    case 2: answer = 2; break;  // device memory
    case 9: answer = kDevice; break;
    default: return kInvalidValue;
  }
  std::memcpy(value, &answer, sizeof(answer));
  return kSuccess;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  if (device != kDevice) return kInvalidValue;
  ++contexts_retained;
  *context = &the_context;
  return kSuccess;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
  if (device != kDevice || contexts_retained-- <= 0) return kInvalidValue;
  return kSuccess;
}

int cuCtxPushCurrent_v2(void* context) {
  if (context != &the_context || contexts_retained <= 0) return kInvalidContext;
  ++contexts_pushed;
  return kSuccess;
}

int cuCtxPopCurrent_v2(void** context) {
  if (contexts_pushed == 0) return kInvalidContext;
  --contexts_pushed;
  *context = &the_context;
  return kSuccess;
}

int cuStreamCreate(void** stream, unsigned flags) {
  if (contexts_pushed == 0) return kInvalidContext;
  if (flags != 1) return kInvalidValue;  // would wait for the program's
  ++streams_open;
  *stream = &the_stream;
  return kSuccess;
}

int cuStreamDestroy_v2(void* stream) {
  if (contexts_pushed == 0) return kInvalidContext;
  if (stream != &the_stream || streams_open-- <= 0) return kInvalidValue;
  return kSuccess;
}

int cuMemcpyAsync(unsigned long long to, unsigned long long from, size_t size, void* stream) {
  if (contexts_pushed == 0) return kInvalidContext;
  if (stream != &the_stream) return kInvalidValue;
  if (failures > 0 && failures-- > 0) return kLaunchFailure;
  const std::lock_guard lock(mutex);
  pending.push_back({to, from, size});
  return kSuccess;
}

// Nothing is there before it.
int cuStreamSynchronize(void* stream) {
  if (contexts_pushed == 0) return kInvalidContext;
  if (stream != &the_stream) return kInvalidValue;
  const std::lock_guard lock(mutex);
  for (const auto& [to, from, size] : pending) std::memcpy(reach(to, size), reach(from, size), size);
  pending.clear();
  return kSuccess;
}

}  // extern "C"
#pragma GCC visibility pop

}  // namespace genie::test
