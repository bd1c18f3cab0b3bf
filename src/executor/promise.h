// Promises: the client said what geometry a record's results have, and has gone on with that.
//
// Thread-safety: functions of their arguments. Errors: ReplayError, which ends the record.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>

#include "src/executor/geometry.h"
#include "src/executor/program.h"

namespace genie::executor {

// "Float[2, 3] with strides [3, 1]"
std::string layout_text(c10::ScalarType dtype, at::IntArrayRef sizes, at::IntArrayRef strides);
std::string layout_text(const at::Tensor& tensor);
// For an operator that gives `real` where `promised` was promised.
ReplayError broken_promise(const std::string& real, const std::string& promised);

// Strides count where a step along them leads to another element. What is expanded or has gaps cannot be promised: the
// client then takes it to be dense, in the order of its dimensions.
bool keeps_promise(const Geometry& promised, c10::ScalarType dtype, const at::Tensor& real);
// Of an argument after the call: raises a broken promise.
void check_promise(const Node& node, std::span<const int64_t> params, const at::Tensor& real);
// What a kernel wrote into an operand stays in the form that the client knows: some lay an out= argument out anew, or leave it
// lazily conjugated.
void keep_form(const Node& node, std::span<const int64_t> params, const at::Tensor& tensor);

}  // namespace genie::executor
