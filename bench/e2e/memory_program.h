// The program whose memory `memory.peak` looks at, in a process of its own.
#pragma once

#include <string>
#include <vector>

namespace genie::bench {

// params.model of memory.peak.
std::vector<std::string> memory_models();

// `genie-bench memory-program MODEL real|reduced cpu|URI`: makes the model on this machine, moves it to its device and runs it. Its
// exit code.
int run_memory_program(int argc, char** argv);

}  // namespace genie::bench
