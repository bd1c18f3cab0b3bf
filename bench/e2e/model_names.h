// What `genie-bench e2e --model` accepts.
#pragma once

#include <string>
#include <vector>

namespace genie::bench {

// params.model of every row of e2e.
std::vector<std::string> e2e_model_names();

}  // namespace genie::bench
