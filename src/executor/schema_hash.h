// How client and node agree that an operator means the same on both sides.
#pragma once

#include <cstdint>

namespace c10 {
struct FunctionSchema;
}

namespace genie::executor {

// XXH3 of the schema's text: name, arguments, types, aliasing, defaults.
uint64_t schema_hash(const c10::FunctionSchema& schema);

}  // namespace genie::executor
