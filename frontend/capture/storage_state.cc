#include "frontend/capture/storage_state.h"

#include <new>

namespace genie::frontend {
namespace {

constexpr size_t kKeptStates = 4096;

struct FreeState {
  FreeState* next;
};

// Trivial, so that it can be used while the thread's other objects are destroyed.
thread_local FreeState* free_states = nullptr;
thread_local size_t free_count = 0;
thread_local bool thread_ends = false;

struct Cleanup {
  ~Cleanup() {
    thread_ends = true;
    while (free_states != nullptr) ::operator delete(std::exchange(free_states, free_states->next));
  }
};

}  // namespace

void* StorageState::operator new(size_t size) {
  if (free_states == nullptr) return ::operator new(size);
  --free_count;
  return std::exchange(free_states, free_states->next);
}

void StorageState::operator delete(void* state) noexcept {
  static thread_local Cleanup cleanup;
  if (thread_ends || free_count >= kKeptStates) {
    ::operator delete(state);
    return;
  }
  free_states = new (state) FreeState{free_states};
  ++free_count;
}

}  // namespace genie::frontend
