// What the program `genie` exits with; listed in its --help. The doctor's own codes are in doctor/command.h.
#pragma once

namespace genie::tools {

enum ExitCode : int {
  kExitOk = 0,
  kExitInternal = 1,     // anything else
  kExitUsage = 2,        // a wrong flag or argument
  kExitInput = 3,        // the model or the input cannot be read
  kExitUnreachable = 4,  // the cluster does not answer, or lets us not in
  kExitModel = 5,        // the model failed while it ran
};

}  // namespace genie::tools
