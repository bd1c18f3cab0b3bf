// Context: the captures that a thread has open.
//
// Purpose: while there is one, the thread's dispatcher includes the key DeferredInit, whose kernels (context_kernels.cc) give
//   factories their device and lift CPU operands. Without one the key is not included, and nothing of this is on any path.
// Thread-safety: each function is about the calling thread; end_capture() may be called from another one, which the owner notices
//   at its next operator.
// Ownership: a capture's state is shared by its handle and its thread.
#pragma once

#include <c10/core/Device.h>

#include <atomic>
#include <memory>
#include <optional>

#include "genie/graph.h"

namespace genie::frontend {

class Journal;

struct CaptureState {
  std::shared_ptr<Journal> journal;
  c10::Device device;
  size_t first = 0;
  std::atomic<size_t> last{0};  // valid once it has ended
  std::atomic<bool> ended{false};

  Graph graph() const;
};

std::shared_ptr<CaptureState> begin_capture(std::optional<c10::Device> device);
void end_capture(const std::shared_ptr<CaptureState>& capture);
// The thread's innermost open one; null when there is none.
const CaptureState* current_capture() noexcept;
// The one that the thread finished last; null when it finished none.
std::shared_ptr<const CaptureState> last_capture();
// In a forked child, of the thread that forked: it captures no more. Touches no session, and nothing that may be locked.
void leave_captures_to_parent() noexcept;
// What a stream that the thread begins to use is attached to; null when nothing is open.
std::shared_ptr<Journal> thread_journal();

}  // namespace genie::frontend
