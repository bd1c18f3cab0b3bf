// The three ways in which a program runs operators, as guards.
//
// Thread-safety: a guard belongs to the thread that made it.
#pragma once

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include <optional>
#include <string>

namespace genie::bench {

inline constexpr const char* kModes[] = {"inference", "no_grad", "grad"};

class ModeGuard {
 public:
  explicit ModeGuard(const std::string& mode) {
    if (mode == "inference") inference_.emplace();
    if (mode == "no_grad") no_grad_.emplace();
  }

 private:
  std::optional<c10::InferenceMode> inference_;
  std::optional<at::NoGradGuard> no_grad_;
};

}  // namespace genie::bench
