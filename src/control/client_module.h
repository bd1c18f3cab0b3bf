// The module that holds the control plane's client: what the installed library loads at its first connection to another process.
//
// Purpose: gRPC and what comes with it are fifty shared libraries. A program that links Genie and opens no session, or an
//   embedded one, loads none of them.
// Thread-safety: any thread. Ownership: as ControlClient::make; the module is never unloaded.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "src/control/control.h"

namespace genie::control {

// The file's name carries the version: the two sides share these types.
inline constexpr const char* kClientModule = "libgenie_control-" GENIE_VERSION ".so";
inline constexpr const char* kClientModuleEntry = "genie_control_client";
using ClientModuleEntry = void (*)(std::string_view uri, std::string token,
                                   Result<std::unique_ptr<ControlClient>>& made);

}  // namespace genie::control
