#include "frontend/capture/call.h"

#include <memory>

namespace genie::frontend {
namespace {

struct Pool {
  std::vector<std::unique_ptr<Call>> calls;
  size_t depth = 0;
};

// A plain pointer in the thread's static block: reading it costs one instruction, also from a shared library.
[[gnu::tls_model("initial-exec")]] thread_local Pool* pool = nullptr;

struct Cleanup {
  ~Cleanup() { delete std::exchange(pool, nullptr); }
};

Pool& make_pool() {
  static thread_local Cleanup cleanup;
  (void)cleanup;
  pool = new Pool;
  return *pool;
}

}  // namespace

CallLease::CallLease() {
  Pool& mine = pool != nullptr ? *pool : make_pool();
  if (mine.depth == mine.calls.size()) mine.calls.push_back(std::make_unique<Call>());
  call_ = mine.calls[mine.depth++].get();
  call_->phase_began_ns = is_timing() ? now_ns() : 0;
}

CallLease::~CallLease() {
  call_->clear();
  if (pool != nullptr) --pool->depth;
}

}  // namespace genie::frontend
