#include "frontend/capture/storage_state.h"

#include <new>
#include <utility>

namespace genie::frontend {
namespace {

constexpr size_t kKeptStates = 4096;

struct FreeState {
  FreeState* next;
};

// A thread's states for reuse. Trivial, so that it can be used while the thread's other objects are destroyed.
struct Kept {
  FreeState* first = nullptr;
  size_t count = 0;
  size_t most = 0;  // 0: before the first was given back, and when the thread ends
};
[[gnu::tls_model("initial-exec")]] constinit thread_local Kept kept;

struct Cleanup {
  Cleanup() { kept.most = kKeptStates; }
  ~Cleanup() {
    kept.most = 0;
    while (kept.first != nullptr) ::operator delete(std::exchange(kept.first, kept.first->next));
  }
};

// There is no room, or the thread has given back none so far.
[[gnu::noinline]] void give_back(void* state) noexcept {
  static thread_local Cleanup cleanup;
  ::operator delete(state);
}

}  // namespace

void* StorageState::operator new(size_t size) {
  Kept& mine = kept;
  if (mine.first == nullptr) return ::operator new(size);
  --mine.count;
  return std::exchange(mine.first, mine.first->next);
}

void StorageState::operator delete(void* state) noexcept {
  Kept& mine = kept;
  if (mine.count >= mine.most) [[unlikely]] {
    give_back(state);
    return;
  }
  mine.first = new (state) FreeState{mine.first};
  ++mine.count;
}

}  // namespace genie::frontend
