// The token that a node may ask its clients for: one line of a file.
//
// Thread-safety: any thread. Ownership: values.
#pragma once

#include <string>

#include "genie/status.h"

namespace genie::control {

// kConfig for a file that cannot be read, or that holds anything but one line.
Result<std::string> read_token_file(const std::string& path);

// `given`; when that is empty, the one in the file that $GENIE_TOKEN_FILE names; when that is not set either, none.
Result<std::string> token_or_environment(std::string given);

}  // namespace genie::control
