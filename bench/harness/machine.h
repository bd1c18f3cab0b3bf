// Where and from what a result was measured: recorded with every report.
//
// Thread-safety: all functions may be called from any thread. Values are returned by copy.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace genie::bench {

// The commit that this program was built from, "-dirty" appended when files differed from it; "unknown" outside git.
std::string build_commit();
// {"type", "compiler", "flags"}.
nlohmann::ordered_json build_description();
// {"cpu", "cores", "memory_gib", "kernel"}.
nlohmann::ordered_json machine_description();

}  // namespace genie::bench
