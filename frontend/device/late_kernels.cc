#include "frontend/device/late_kernels.h"

#include <mutex>

namespace genie::frontend {
namespace {

// Zero before any static object is made.
constinit LateKernels* first = nullptr;
constinit LateKernels** last = &first;

}  // namespace

constinit std::atomic<bool> kernels_registered_flag{false};

LateKernels::LateKernels(const char* name_space, c10::DispatchKey key, Register run, const char* file,
                         uint32_t line) noexcept
    : name_space_(name_space), key_(key), run_(run), file_(file), line_(line) {
  *last = this;
  last = &next_;
}

void register_kernels() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (const LateKernels* block = first; block != nullptr; block = block->next_) {
      // Never deleted: that would take the kernels back.
      auto* const library =
          new torch::Library(torch::Library::IMPL, block->name_space_, block->key_, block->file_, block->line_);
      block->run_(*library);
    }
    kernels_registered_flag.store(true, std::memory_order_release);
  });
}

}  // namespace genie::frontend
