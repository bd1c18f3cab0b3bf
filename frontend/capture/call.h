// Call: an operator's call in words, before it is appended to its stream.
//
// Purpose: what every way into capture (boxed or typed) writes and the recorder reads. The thread reuses it, so that capture
//   allocates nothing of its own.
// Thread-safety: a call belongs to the thread that leased it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <string>
#include <utility>
#include <vector>

#include "datapath/base/clock.h"
#include "frontend/capture/session_core.h"
#include "frontend/capture/stream.h"
#include "frontend/capture/timing.h"
#include "frontend/capture/words.h"

namespace genie::frontend {

struct TouchedState {
  StorageState* state;
  Touch mode;
  uint32_t slot = 0;  // in the segment that it goes to
};

struct Call {
  Words<uint32_t> code;
  Words<int64_t> params;
  Words<int64_t> key;  // the request for shape inference
  Words<TouchedState> touched;
  std::vector<std::pair<uint32_t, std::string>> strings;  // position in code
  std::vector<at::Tensor> lifted;
  c10::SmallVector<at::Tensor, 4> results;
  StorageState* generator = nullptr;  // kept alive by the call's arguments; null: none, or the device's own
  SessionCore* core = nullptr;
  const SourceLine* source = nullptr;                    // with tracing only
  uint64_t phase_began_ns = 0;                           // with timing only
  c10::Device device{c10::DeviceType::PrivateUse1, -1};  // index -1: not known yet

  void clear() noexcept {
    code.clear();
    params.clear();
    key.clear();
    touched.clear();
    if (!strings.empty()) strings.clear();
    if (!lifted.empty()) lifted.clear();
    results.clear();
    generator = nullptr;
    core = nullptr;
    source = nullptr;
    device = c10::Device(c10::DeviceType::PrivateUse1, -1);
  }
};

// The time since the last call of this, or since the lease, went into `phase`.
inline void end_phase(OpInfo& op, Call& call, Phase phase) noexcept {
  if (call.phase_began_ns == 0) [[likely]]
    return;
  const uint64_t now = now_ns();
  op.times.add(phase, now - call.phase_began_ns);
  call.phase_began_ns = now;
}

// Recording can nest (a lifted operand records a copy): one call per depth.
class CallLease {
 public:
  CallLease();
  ~CallLease();
  CallLease(const CallLease&) = delete;
  CallLease& operator=(const CallLease&) = delete;
  Call& operator*() const noexcept { return *call_; }

 private:
  Call* call_;
};

}  // namespace genie::frontend
