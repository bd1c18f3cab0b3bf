// Tracing: which line of the program captured an operator, and in which module.
//
// Purpose: an operator runs later than it is called, so its error shows where the value is used. With tracing on (also
//   GENIE_TRACE_LINES=1) the error says "captured at train.py:12 in net.layers.0" as well, and describe() knows the module.
//   What is known: in TorchScript its line and module path; in Python the line of the program outside of torch, and the path of the
//   nn.Module; in C++ what a SourceFinder of the program says, for C++ code has no line to ask for. Operators of a
//   backward pass belong to no line unless the program's thread records them itself.
//   Costs microseconds per operator. set_lazy(false) is the other way: errors then show at the calling line itself.
// Thread-safety: any thread; a finder is called on the thread that calls the operator, on several at once.
// Ownership: a finder is kept until the process ends.
#pragma once

#include <functional>
#include <string>

#include "genie/status.h"

namespace genie {

struct SourceLine {
  std::string line;    // "train.py:12"; empty: unknown
  std::string module;  // "net.layers.0"; empty: unknown
};

GENIE_API void set_trace_lines(bool trace);
GENIE_API bool is_tracing_lines();

// Says where the calling thread is, for languages and programs that know; the Python package sets one. Must not call operators.
using SourceFinder = std::function<SourceLine()>;
GENIE_API void set_source_finder(SourceFinder finder);

}  // namespace genie
