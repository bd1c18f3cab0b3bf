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

#include "frontend/capture/session_core.h"
#include "frontend/capture/stream.h"

namespace genie::frontend {

struct TouchedState {
  StorageState* state;
  Touch mode;
};

struct Call {
  c10::SmallVector<uint32_t, 64> code;
  c10::SmallVector<int64_t, 64> params;
  c10::SmallVector<int64_t, 64> key;  // the request for shape inference
  c10::SmallVector<TouchedState, 16> touched;
  std::vector<std::pair<uint32_t, std::string>> strings;  // position in code
  std::vector<at::Tensor> lifted;
  c10::SmallVector<at::Tensor, 4> results;
  StorageState* generator = nullptr;  // kept alive by the call's arguments; null: none, or the device's own
  SessionCore* core = nullptr;
  const SourceLine* source = nullptr;                    // with tracing only
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
