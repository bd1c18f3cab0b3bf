#include "bench/harness/allocations.h"

#include <cerrno>
#include <cstddef>

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)

namespace genie::bench {
AllocationCounts thread_allocations() noexcept { return {}; }
bool counts_allocations() noexcept { return false; }
}  // namespace genie::bench

#else

namespace {

// Initial-exec and without constructor: malloc may run before anything of C++ does.
__attribute__((tls_model("initial-exec"))) thread_local constinit genie::bench::AllocationCounts counts;

inline void count(size_t bytes) noexcept {
  ++counts.calls;
  counts.bytes += bytes;
}

}  // namespace

namespace genie::bench {
AllocationCounts thread_allocations() noexcept { return counts; }
bool counts_allocations() noexcept { return true; }
}  // namespace genie::bench

// glibc's allocator under its own names; operator new reaches it through malloc. free() needs no replacement.
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t items, size_t bytes);
void* __libc_realloc(void* memory, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

[[gnu::visibility("default")]] void* malloc(size_t bytes) noexcept {
  count(bytes);
  return __libc_malloc(bytes);
}
[[gnu::visibility("default")]] void* calloc(size_t items, size_t bytes) noexcept {
  count(items * bytes);
  return __libc_calloc(items, bytes);
}
[[gnu::visibility("default")]] void* realloc(void* memory, size_t bytes) noexcept {
  count(bytes);
  return __libc_realloc(memory, bytes);
}
[[gnu::visibility("default")]] void* memalign(size_t alignment, size_t bytes) noexcept {
  count(bytes);
  return __libc_memalign(alignment, bytes);
}
[[gnu::visibility("default")]] void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  count(bytes);
  return __libc_memalign(alignment, bytes);
}
[[gnu::visibility("default")]] int posix_memalign(void** memory, size_t alignment, size_t bytes) noexcept {
  if (alignment % sizeof(void*) != 0 || (alignment & (alignment - 1)) != 0 || alignment == 0) return EINVAL;
  count(bytes);
  void* made = __libc_memalign(alignment, bytes);
  if (made == nullptr) return ENOMEM;
  *memory = made;
  return 0;
}
}

#endif
