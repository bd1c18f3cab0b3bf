// Operators besides PyTorch's: which of them come from libraries that this process was told to load (load_operator_library), and
// when some have gone.
//
// Thread-safety: any thread.
#pragma once

#include <ATen/core/operator_name.h>

namespace genie::executor {

bool is_library_operator(const c10::OperatorName& name);

// Moves on when an operator goes from the process: handles of operators may dangle then.
uint32_t departures() noexcept;

}  // namespace genie::executor
