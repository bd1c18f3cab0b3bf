// One call of an operator, sent the way a client would: a template of one record, its tensors as storages.
//
// Purpose: shows what a node makes of operands that no honest client sends. Each tensor's bytes end at a page that may not be
//   touched, so that a kernel that leaves them dies at once.
// Thread-safety: one thread.
#pragma once

#include <ATen/core/ivalue.h>

#include <string>
#include <vector>

#include "genie/status.h"

namespace genie::test {

// What compiling and running it answered.
Status call(const std::string& name, const std::string& overload, const std::vector<c10::IValue>& arguments);

// Results of every operator, too, end at such a page from now on.
void guard_all_results();

}  // namespace genie::test
