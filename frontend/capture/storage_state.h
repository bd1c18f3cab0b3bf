// StorageState: the identity of a remote storage on the client.
//
// Purpose: lives in the context of the StorageImpl's DataPtr, so that it survives module.to(), views, autograd and optimizers
//   (fields of a TensorImpl would not).
// Thread-safety: reference counts and the segment tags are atomic. The rest is written under the lock of the stream that has the
//   storage pending, or under the session's flush lock.
// Ownership: one reference is held by the DataPtr (the tensors' side), one by every open segment that touches the storage, one
//   by every submission in flight that writes it. The last one to go frees the storage on the node.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/StorageImpl.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "genie/status.h"

namespace genie {
struct SourceLine;
}

namespace genie::frontend {

class SessionCore;
struct OpInfo;

struct StorageState {
  StorageState(SessionCore* session, uint64_t id) noexcept : session(session), id(id) {}
  StorageState(const StorageState&) = delete;
  StorageState& operator=(const StorageState&) = delete;

  // States come and go with every captured operator: each thread keeps a few for reuse.
  static void* operator new(size_t size);
  static void operator delete(void* state) noexcept;

  // The state of a tensor's storage, which must be on the remote device.
  static StorageState* of(const c10::StorageImpl* storage) noexcept {
    return static_cast<StorageState*>(
        const_cast<c10::StorageImpl*>(storage)->_mutable_data_ptr_no_checks().get_context());
  }

  void retain() noexcept { references.fetch_add(1, std::memory_order_relaxed); }
  bool is_only_reference() const noexcept { return references.load(std::memory_order_acquire) == 1; }
  // The last one needs no exchange: nobody is left who could take another.
  void release() noexcept {
    if (is_only_reference() || references.fetch_sub(1, std::memory_order_acq_rel) == 1) last_reference_gone();
  }
  void last_reference_gone() noexcept;

  SessionCore* const session;
  const uint64_t id;
  std::atomic<uint32_t> references{1};

  // [segment : 32 | slot : 32] of the last segment that touched it: a cache, checked against the segment's number.
  std::atomic<uint64_t> place{0};
  // The open segment that last wrote it, 0 when none. And the open segment that last read it.
  std::atomic<uint32_t> writer{0};
  std::atomic<uint32_t> reader{0};
  // More than one stream has it pending for reading.
  std::atomic<bool> many_readers{false};

  std::atomic<bool> handle_gone{false};  // no tensor refers to it any more
  std::atomic<bool> poisoning{false};    // one thread wins the right to set the error
  std::atomic<bool> poisoned{false};
  bool on_node = false;  // lives on the node once what was submitted has run
  // Some captured record, or an upload, gave it content. Threads that read one storage all say so.
  std::atomic<bool> defined{false};
  uint32_t version = 0;  // on the node, once what was submitted has run
  uint64_t size_bytes = 0;
  const OpInfo* producer = nullptr;    // what wrote it last,
  const SourceLine* source = nullptr;  // and where; with tracing only
  // Set once, before `poisoned`.
  std::shared_ptr<const Status> error;
  StorageState* next_free = nullptr;  // in the session's list of storages to free
};

// An owning reference to a state.
class StateRef {
 public:
  StateRef() noexcept = default;
  explicit StateRef(StorageState* state) noexcept : state_(state) { state_->retain(); }
  // Takes over a reference that is there already.
  static StateRef adopt(StorageState* state) noexcept {
    StateRef made;
    made.state_ = state;
    return made;
  }
  StateRef(StateRef&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
  StateRef& operator=(StateRef&& other) noexcept {
    std::swap(state_, other.state_);
    return *this;
  }
  StateRef(const StateRef&) = delete;
  StateRef& operator=(const StateRef&) = delete;
  ~StateRef() {
    if (state_ != nullptr) state_->release();
  }
  StorageState* get() const noexcept { return state_; }
  StorageState* operator->() const noexcept { return state_; }

 private:
  StorageState* state_ = nullptr;
};

}  // namespace genie::frontend
