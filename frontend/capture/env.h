// Switches in the environment.
#pragma once

#include <cstdlib>
#include <string_view>

namespace genie::frontend {

// "0" is off and anything else is on; `otherwise` where the variable is not set.
inline bool env_switch(const char* name, bool otherwise) {
  const char* wanted = std::getenv(name);
  return wanted == nullptr ? otherwise : std::string_view(wanted) != "0";
}

}  // namespace genie::frontend
