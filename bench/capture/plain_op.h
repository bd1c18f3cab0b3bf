// What idle.cpu_op issues: an ordinary operator on CPU tensors, with this library in the process and without it.
//
// Thread-safety: one thread. Ownership: plain tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/ones.h>

#include "datapath/base/clock.h"

namespace genie::bench {

class PlainOp {
 public:
  // Nanoseconds per call of a burst.
  double run() const {
    constexpr int kBurst = 2000;
    const uint64_t begin = now_ns();
    for (int i = 0; i < kBurst; ++i) at::add(a_, b_);
    return static_cast<double>(now_ns() - begin) / kBurst;
  }

 private:
  at::Tensor a_ = at::ones({4, 4});
  at::Tensor b_ = at::ones({4, 4});
};

}  // namespace genie::bench
