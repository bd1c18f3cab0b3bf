// Registry: which session serves which device index.
//
// Purpose: every session owns a contiguous range of indices of the device `remote_accelerator`; the first is planned, the next are
//   its physical devices. Without an explicit session the first use of index 0 connects to $GENIE_CLUSTER, else to "embedded:".
// Thread-safety: all functions may be called from any thread; core_of() costs one atomic load once connected.
// Ownership: cores are kept until the process ends: storages point at them.
#pragma once

#include <memory>
#include <string_view>

#include "genie/status.h"
#include "src/session/link.h"

namespace genie::frontend {

class SessionCore;

// deviceCount() of the back end: constant for the process, since autograd sizes its queues once.
inline constexpr int kMaxDevices = 16;

// The session of a device index; connects the default one where allowed. Throws genie::Error.
SessionCore& core_of(int device_index);
// The same without connecting: null where no session serves the index.
SessionCore* find_core(int device_index) noexcept;
// Opens a session and gives it the next free range of indices.
Result<std::shared_ptr<SessionCore>> connect_session(std::string_view uri, const session::LinkOptions& options);
// Sessions that are open, in the order of their indices.
std::vector<std::shared_ptr<SessionCore>> open_sessions();

// The device that a thread's factories use when they name no index.
int current_device() noexcept;
void set_current_device(int index) noexcept;

}  // namespace genie::frontend
