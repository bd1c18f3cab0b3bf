// Source: where the program captured an operator; the inside of include/genie/trace.h.
//
// Thread-safety: any thread. Ownership: sources live until the process ends; there are as many as the program has lines.
#pragma once

#include <atomic>

#include "genie/trace.h"

namespace genie::frontend {

extern std::atomic<bool> tracing;
const SourceLine* find_source();
// Null when tracing is off, or nothing is known. Not to be called under a lock: it may ask Python.
inline const SourceLine* current_source() { return tracing.load(std::memory_order_relaxed) ? find_source() : nullptr; }
// " (captured at train.py:12 in net.layers.0)"
std::string to_text(const SourceLine& source);

}  // namespace genie::frontend
